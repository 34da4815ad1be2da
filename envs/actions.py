"""Actions in replies: what a model played, read out of what it said. Any string gives an action.

A reply of the style "plain" is the action. "react" has it between tags and is read as verl-agent
reads it (env_package/*/projection.py). "program" has it in a fenced block (envs/fences.py).
"""

from __future__ import annotations

import dataclasses
import re

from envs.fences import first_program

MAX_ACTION_CHARS = 4096
MAX_PROGRAM_CHARS = 65536

_OPENS, _CLOSES = "<action>", "</action>"
_CHINESE = re.compile("[\u4e00-\u9fff]")


@dataclasses.dataclass(frozen=True)
class Form:
    """What is particular to one environment's "react" messages and replies in verl-agent.

    Attributes:
      variant: which templates it has; see envs/templates.
      fallback_chars: N; the action of a reply without tags is its last N characters.
      pool: the action is the first of these that occurs between the tags; (): all that is there.
      keeps_case: the reply is read as it is. False: in lower case, so tags may be in capitals.
      latin_only: a reply with Chinese characters is not well-formed.
      max_chars: a longer window message leaves the history out; 0: no limit.
    """

    variant: str = ""
    fallback_chars: int = 30
    pool: tuple[str, ...] = ()
    keeps_case: bool = False
    latin_only: bool = False
    max_chars: int = 0


def from_line(reply: str) -> tuple[str, bool]:
    """(action, well-formed): the whole reply with single spaces."""
    action = " ".join(reply.split())[:MAX_ACTION_CHARS]
    return action, bool(action)


def from_program(reply: str) -> tuple[str, bool]:
    """(program, well-formed): the first fenced block after the thought."""
    program, fenced = first_program(reply.rpartition("</think>")[2])
    program = program[:MAX_PROGRAM_CHARS]
    return program, fenced and bool(program.strip())


def from_tags(reply: str, form: Form) -> tuple[str, bool]:
    """(action, well-formed): what is between the first opening and the first closing tag.

    It is played even if the thought is missing, but then the reply is not well-formed. It is empty
    if the closing tag comes first, as in a thought that mentions it.
    """
    text = reply if form.keeps_case else reply.lower()
    opens, closes = text.find(_OPENS), text.find(_CLOSES)
    if opens < 0 or closes < 0:
        return text[max(0, len(text) - form.fallback_chars) :], False
    action = text[opens + len(_OPENS) : closes].strip()[:MAX_ACTION_CHARS]
    if form.pool:
        action = next((word for word in form.pool if word in action), "")
    thought = "<think>" in reply and "</think>" in reply
    latin = not (form.latin_only and _CHINESE.search(reply))
    return action, thought and latin and bool(action or not form.pool)
