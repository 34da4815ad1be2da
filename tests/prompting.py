"""Prompts of an environment that is no more than its name and description."""

from types import SimpleNamespace

from envs.prompts import Prompts, PromptsConfig


def prompts_for(description: str = "", env: str = "", **fields) -> Prompts:
    return Prompts(SimpleNamespace(name=env, description=description), PromptsConfig(**fields))
