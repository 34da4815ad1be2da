"""Chat templates: finding a tokenizer's template and rendering conversations with it."""

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
_MAX_BYTES = 2**20  # limit on a template; the longest known ones have 20 KB
# Seconds of wall time, in case the limit on processor time does not end the child process.
_PATIENCE = 60.0


class TemplateError(Exception):
    """A template cannot be rendered. The message says why, but names no file."""


def chosen_template(tokenizer: Any) -> str:
    """The chat template of a tokenizer. Of several named ones, it is "default".

    Raises:
      UserError: there is none, or it is longer than 1 MiB.
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
      UserError: it cannot be read, is no regular file, is not UTF-8, or is longer than 1 MiB.
    """
    return read_text(Path(path), _MAX_BYTES)


def render(
    template: str, conversations: Sequence[tuple[Sequence[tuple[str, str]], bool]], **variables: Any
) -> list[str]:
    """The text of each conversation, as transformers' apply_chat_template gives it.

    It is rendered in a child process with limits on processor time and memory. Templates always see
    the date 26 July 2024.

    Args:
      template: Jinja text.
      conversations: for each, (role, content) pairs and whether to append the beginning of a reply.
      variables: what the template sees in addition to the messages.

    Raises:
      TemplateError: the template raises an exception, or takes too much time or memory.
    """
    messages = [
        ([{"role": role, "content": content} for role, content in turns], prompt)
        for turns, prompt in conversations
    ]
    job = {"template": template, "conversations": messages, "variables": variables}
    return list(_render(json.dumps(job, sort_keys=True)))


@functools.lru_cache(maxsize=16)  # several phases of a run open the same checkpoint
def _render(job: str) -> tuple[str, ...]:
    if not sys.executable:  # Python is embedded in another program
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
