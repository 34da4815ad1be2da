"""Prompts of an environment that is no more than its name, description and form."""

from types import SimpleNamespace

import envs
from envs.actions import Form
from envs.prompts import Prompts, PromptsConfig


def prompts_for(description: str = "", env: str = "", **fields) -> Prompts:
    """`env` gives the form of that environment, if there is one of the name."""
    form = envs.find(env).form if env in envs.REGISTRY else Form()
    described = SimpleNamespace(name=env, description=description, form=form)
    return Prompts(described, PromptsConfig(**fields))
