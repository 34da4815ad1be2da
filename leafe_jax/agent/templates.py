"""Chat templates: which one a tokenizer has, and what it makes of a conversation."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.runtime.files import read_text

_RENDERER = Path(__file__).with_name("render_template.py")
_MAX_BYTES = 2**20  # of a template; the longest known ones have 20 KB
_PATIENCE = 60.0  # seconds of wall time: the backstop behind the limit on processor time


class TemplateError(Exception):
    """A template that cannot be rendered; the message says why, without a file."""


def chosen_template(tokenizer) -> str:
    """The template of a tokenizer; of several with names, the one called "default".

    Raises:
      UserError: there is none, or it is longer than a megabyte.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict) and template and "default" not in template:
        names = ", ".join(sorted(map(str, template)))
        raise UserError(
            f"model.path: the chat templates are called {names}, and none 'default'; name a file"
            " in model.chat_template"
        )
    if isinstance(template, dict):
        template = template.get("default")
    if not template or not isinstance(template, str):
        raise UserError(
            "model.path: the tokenizer has no chat template; name a file with one in"
            " model.chat_template"
        )
    if len(template) > _MAX_BYTES:
        raise UserError(
            f"model.path: the chat template has {len(template)} characters: must be at most {_MAX_BYTES}"
        )
    return template


def read_template(path: str | Path) -> str:
    """The text of a template file.

    Raises:
      UserError: it cannot be read, is no regular file, no UTF-8, or longer than a megabyte.
    """
    return read_text(Path(path), _MAX_BYTES)


def render(
    template: str, conversations: Sequence[tuple[Sequence[tuple[str, str]], bool]], **variables: Any
) -> list[str]:
    """The text of conversations, as transformers' apply_chat_template gives it.

    It is rendered in another process, which has limits on processor time and memory. The date is 26
    July 2024 on any day.

    Args:
      template: Jinja text.
      conversations: ((role, content) pairs, whether the beginning of a reply is appended) of each.
      variables: what the template sees beside the messages.

    Raises:
      TemplateError: it raises something, or takes more time or memory than a template needs.
    """
    messages = [
        ([{"role": role, "content": content} for role, content in turns], prompt)
        for turns, prompt in conversations
    ]
    job = {"template": template, "conversations": messages, "variables": variables}
    return list(_render(json.dumps(job, sort_keys=True)))


@functools.lru_cache(maxsize=16)  # a run opens the same checkpoint in several phases
def _render(job: str) -> tuple[str, ...]:
    if not sys.executable:  # where Python is embedded in another program
        raise TemplateError("it could not be rendered: sys.executable names no Python interpreter")
    command = [sys.executable, "-I", "-S", str(_RENDERER)]
    text = json.dumps({**json.loads(job), "path": sys.path})
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=_PATIENCE)
        found = json.loads(done.stdout) if done.returncode == 0 else {}
    except subprocess.TimeoutExpired:
        found = {}
    except (OSError, ValueError) as error:
        raise TemplateError(f"it could not be rendered: {error}") from error
    if "texts" not in found:
        raise TemplateError(found.get("error", "it takes too much time or memory"))
    return tuple(found["texts"])
