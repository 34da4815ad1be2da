"""Every text that a model is sent, and what its replies mean.

The texts are templates (envs/templates), one file each, and a config field replaces any of them by a
file of the user's. Replies are read by envs/actions.py and envs/reflections.py.

Four styles. "plain": the user turn is the observation and the whole reply is the action; the
embedded base model speaks it. "chat": the same, and a system message says so in words; for instruct
models that a warm start has taught the replies. "react": instructions in words, and the reply is
`<think>...</think><action>...</action>` as in verl-agent; instruct models speak it. "program":
the reply's first fenced block is the action, many lines long. Steps are numbered in what the model
reads, so that a reflection can name one.

Two context modes. "dialogue": one growing conversation. "window": one user message, rebuilt every
step from the task, the last n observation-action pairs and the current observation. The "react"
messages have the parts of verl-agent's and their order (agent_system/environments/prompts,
env_manager.py).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from envs import actions as _actions
from envs import reflections
from envs.actions import Form
from envs.errors import EnvDataError
from envs.reflections import Reflection
from envs.templates import Template, fenced, find

STYLES = ("plain", "chat", "react", "program")
LINES = ("plain", "chat")  # the whole reply is the action
_TAG = re.compile(r"</?(?:think|action)>|```", re.IGNORECASE)

# Template -> the variables it may use; docs/PROMPTS.md says what they are.
_ALWAYS = ("description", "environment")
_TURN = (*_ALWAYS, "step", "observation", "experience", "instruction")
TEMPLATES = {
    "system": _ALWAYS,
    "instruction": _ALWAYS,
    "experience": (*_ALWAYS, "step", "advice"),
    "first": _TURN,
    "turn": _TURN,
    "window": (*_TURN, "first", "history", "goal", "actions", "reflecting"),
    "reflection": (*_ALWAYS, "step", "observation", "episode", "reasoning"),
    "world": _ALWAYS,
    "contrast": (*_ALWAYS, "step", "observation", "episode", "action", "better", "outcome"),
    "playbook": (*_ALWAYS, "message", "playbook", "bullets"),
    "reflector": (*_ALWAYS, "step", "observation", "episode", "playbook", "success"),
    "curator": (*_ALWAYS, "playbook", "insight", "success", "tokens", "budget"),
}


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """What a model is sent. A path names a template file; "" takes the package's own of the style.

    Raises:
      EnvDataError: a value is not allowed.
    """

    # plain (the reply is the action), chat (so it is, and a system message says so), react (think,
    # then act) or program
    style: str = "plain"
    answer_tokens: int = 16  # most sampled tokens of a reflection's answer (tau, e)
    # Most sampled tokens that a reflection may reason for before its answer. 0: it is asked for one
    # line, without reasoning.
    reasoning_tokens: int = 0
    system: str = ""  # system message; if it is empty, the chat template's default applies
    instruction: str = ""  # how to reply, at the end of first, turn and window
    experience: str = ""  # how the advice e is put into first, turn and window
    first: str = ""  # first message of a dialogue
    turn: str = ""  # later messages of a dialogue
    window: str = ""  # every message in window mode, and the history before a reflection there
    reflection: str = ""  # the question for (tau, e)
    # Early Experience: the question for the next observation, and for why another action is better.
    world: str = ""
    contrast: str = ""
    # ACE: a message with the playbook, and what its reflector and its curator are asked.
    playbook: str = ""
    reflector: str = ""
    curator: str = ""

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise EnvDataError(
                f"prompts.style = {self.style!r}: must be one of {', '.join(STYLES)}"
            )
        for name, least in (("answer_tokens", 1), ("reasoning_tokens", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise EnvDataError(
                    f"prompts.{name} = {value!r}: must be an integer of at least {least}"
                )
        for name in TEMPLATES:
            if not isinstance(getattr(self, name), str):
                raise EnvDataError(
                    f"prompts.{name} = {getattr(self, name)!r}: must be a path, or '' for none"
                )

    @property
    def reflection_tokens(self) -> int:
        """Most sampled tokens of a reflection, reasoning and answer together."""
        return self.reasoning_tokens + self.answer_tokens


class Described(Protocol):
    """What prompts need of an environment.

    Attributes:
      name: what templates call it.
      description: one paragraph about the environment and its actions.
      form: how its "react" messages and replies look.
    """

    name: str
    description: str
    form: Form


class Playbook(Protocol):
    """What prompts need of a playbook (leafe_jax/methods/playbook.py).

    Attributes:
      text: in ACE's format.
      bullets: its lines; `content` of each is the advice alone.
    """

    @property
    def text(self) -> str: ...

    @property
    def bullets(self) -> Sequence[Any]: ...


@dataclasses.dataclass(frozen=True)
class _Line:
    content: str


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A playbook to try templates with."""

    text: str
    bullets: tuple[_Line, ...]


class Prompts:
    """Renders what a model is sent and parses what it replies, for one environment.

    Args:
      environment: whose observations are rendered.
      config: style, lengths and the user's own templates.

    Attributes:
      system: the system message; "" for none.

    Raises:
      EnvDataError: a template cannot be read or fails on sample values; one line that names field,
        file and line.
    """

    def __init__(self, environment: Described, config: PromptsConfig = PromptsConfig()):
        self.config = config
        self.form = environment.form
        self._always = {
            "description": environment.description,
            "environment": environment.name,
        }
        self._templates = {
            name: Template(
                Path(getattr(config, name) or find(config.style, name, self.form.variant)),
                f"prompts.{name}",
                variables,
            )
            for name, variables in TEMPLATES.items()
        }
        self._playbook: Playbook | None = None
        self.system = self._render("system")
        self._instruction = self._render("instruction")
        self._try_templates()

    # -- rendering -----------------------------------------------------------------------------
    def observation(self, step: int, observation: str, told: Sequence[tuple[int, str]] = ()) -> str:
        """The user turn of a dialogue before action `step`.

        Args:
          step: 1-based number of the action asked for.
          observation: what action `step` - 1 brought, or the episode's first observation.
          told: (step, e) pairs: the experiences shown in this message, in order.
        """
        message = self._render(
            "first" if step == 1 else "turn",
            step=step,
            observation=observation,
            experience=self._experience(told),
            instruction=self._instruction,
        )
        return self._with_playbook(message) if step == 1 else message

    def window(
        self,
        first: str,
        history: Sequence[tuple[str, str]],
        step: int,
        observation: str,
        told: Sequence[tuple[int, str]] = (),
        goal: str = "",
        actions: Sequence[str] | str | None = (),
    ) -> str:
        """One self-contained user turn: task, the last (observation, action) pairs, now.

        Args:
          first: first observation of the episode, which states the task.
          history: (observation, action) pairs shown, oldest first; they end at step - 1.
          step: number of the action asked for.
          observation: current observation.
          told: (step, e) pairs: the experiences in view and the step that each was given for, in order.
          goal: the task in words; "" if every observation shows it.
          actions: admissible now, or a text about them; () leaves that out, None the request for an
            action too: a reflection is asked next.
        """
        brought = [*(seen for seen, _ in history), observation][1:]
        start = step - len(history)
        values = {
            "first": first,
            "history": [
                {"step": number, "observation": seen, "action": done, "feedback": feedback}
                for number, ((seen, done), feedback) in enumerate(
                    zip(history, brought, strict=True), start
                )
            ],
            "step": step,
            "observation": observation,
            "experience": self._experience(told),
            "goal": goal,
            "actions": () if actions is None else actions,
            "reflecting": actions is None,
            "instruction": self._instruction,
        }
        text = self._with_playbook(self._render("window", **values))
        # The history that a reflection is asked about is never cut.
        if actions is not None and self._too_long(text):
            return self._with_playbook(self._render("window", **{**values, "history": []}))
        return text

    def _too_long(self, text: str) -> bool:
        return self.config.style == "react" and 0 < self.form.max_chars < len(text)

    def reflection(self, step: int, observation: str, episode: str = "") -> str:
        """p_refl (arXiv 2603.16843, Stage 1), asked after `step` - 1 actions.

        Args:
          step: number of the action that would come next.
          observation: what action `step` - 1 brought.
          episode: the whole episode as `window` renders it; "" if the context holds it already.
        """
        return self._render(
            "reflection",
            step=step,
            observation=observation,
            episode=episode,
            reasoning=self.config.reasoning_tokens > 0,
        )

    def with_playbook(self, playbook: Playbook) -> Prompts:
        """The same prompts with a playbook: in the first message of a dialogue, in every message of a
        window."""
        made = copy.copy(self)
        made._playbook = playbook
        return made

    @property
    def replies_in_lines(self) -> bool:
        """The whole reply is the action, and reflections are one line."""
        return self.config.style in LINES

    @property
    def has_bullets(self) -> bool:
        """Whether there is a playbook with a bullet."""
        return self._playbook is not None and len(self._playbook.bullets) > 0

    def _with_playbook(self, message: str) -> str:
        book = self._playbook
        if book is None:
            return message
        return self._render("playbook", message=message, playbook=book.text, bullets=book.bullets)

    def reflector(self, step: int, observation: str, episode: str, success: bool) -> str:
        """What ACE's reflector is asked after an episode (arXiv 2510.04618).

        Args:
          step, observation, episode: as in `reflection`.
          success: the goal was reached.
        """
        text = self._playbook.text if self._playbook else ""
        return self._render(
            "reflector", step=step, observation=observation, episode=episode, playbook=text,
            success=success,
        )  # fmt: skip

    def curator(self, insight: str, success: bool, tokens: int, budget: int) -> str:
        """What ACE's curator is asked about a review of an episode.

        Args:
          insight: the review.
          success: the goal was reached.
          tokens, budget: size of the playbook, and the most it may have.
        """
        text = self._playbook.text if self._playbook else ""
        return self._render(
            "curator", playbook=text, insight=insight, success=success, tokens=tokens, budget=budget
        )

    def world(self) -> str:
        """The user turn that asks for what the last action of the conversation will bring."""
        return self._render("world")

    def contrast(
        self, step: int, observation: str, episode: str, action: str, better: str, outcome: str
    ) -> str:
        """The user turn that asks why an expert's action is better (arXiv 2510.08558).

        Args:
          step, observation, episode: as in `reflection`.
          action: the last action of the conversation, which brought `observation`.
          better: the expert's action at the same step.
          outcome: what that brought.
        """
        return self._render(
            "contrast", step=step, observation=observation, episode=episode, action=action,
            better=better, outcome=outcome,
        )  # fmt: skip

    def _experience(self, told: Sequence[tuple[int, str]]) -> str | None:
        lines = [self._render("experience", step=step, advice=advice) for step, advice in told]
        return "\n".join(lines) if lines else None

    def _render(self, name: str, **values: Any) -> str:
        return self._templates[name].render(**self._always, **values)

    def _try_templates(self) -> None:
        """Renders every template with sample values, so that a mistake ends a run at its start."""
        pair, long = ("seen", "done"), ["one", "two"]
        for told in ((), ((1, "advice"), (2, "more"))):
            for step in (1, 2, 9):
                self.observation(step, "seen", told)
                for history in ([], [pair] * (step - 1)):
                    for goal, listed in (("", ()), ("goal", long), ("goal", "text"), ("", None)):
                        self.window("first", history, step, "seen", told, goal, listed)
        for episode in ("", "episode"):
            self.reflection(2, "seen", episode)
        self._try_asides()

    def _try_asides(self) -> None:
        self.world()
        for episode in ("", "episode"):
            self.contrast(2, "seen", episode, "done", "better", "outcome")
        for book in (None, _Sample("", ()), _Sample("text", (_Line("one line"),))):
            prompts = self if book is None else self.with_playbook(book)
            prompts.observation(1, "seen")
            for success in (True, False):
                prompts.reflector(2, "seen", "", success)
                prompts.curator("insight", success, 10, 100)

    # -- what a run records --------------------------------------------------------------------
    def sources(self) -> dict[str, str]:
        """Template name -> the text of its file, for every template in use."""
        return {name: template.text for name, template in self._templates.items()}

    def digest(self) -> str:
        """SHA-256 of `sources`, and of the playbook if there is one, in hexadecimal."""
        sources = self.sources() | ({"": self._playbook.text} if self._playbook else {})
        text = json.dumps(sources, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    # -- parsing -------------------------------------------------------------------------------
    def parse_action(self, reply: str) -> tuple[str, bool]:
        """(action, well-formed). Any string gives an action; an odd one is the environment's no-op."""
        if self.config.style in LINES:
            return _actions.from_line(reply)
        if self.config.style == "program":
            return _actions.from_program(reply)
        return _actions.from_tags(reply, self.form)

    def format_action(self, action: str) -> str:
        """The reply that `parse_action` reads as `action` (for scripted players)."""
        if self.config.style == "program":
            return fenced(action)
        return action if self.config.style in LINES else f"<think></think><action>{action}</action>"

    def parse_contrast(self, reply: str) -> str:
        """The reason in an answer to `contrast`, in one line; "" if there is none.

        A reason that spells a tag is none: the tag would end the thought that it becomes.
        """
        reason = " ".join(reply.split())[: reflections.MAX_EXPERIENCE_CHARS]
        return "" if _TAG.search(reason) else reason

    def format_reasoned(self, reason: str, action: str) -> str:
        """The reply that gives a reason first, and that `parse_action` reads as `action`.

        Raises:
          EnvDataError: in the styles "plain" and "chat" the whole reply is the action.
        """
        if self.config.style in LINES:
            raise EnvDataError(
                f"prompts.style = {self.config.style!r}: must be react or program where replies give"
                " reasons"
            )
        if self.config.style == "program":
            return f"<think>{reason}</think>\n{fenced(action)}"
        return f"<think>{reason}</think><action>{action}</action>"

    @property
    def _reasons(self) -> bool:
        """Reflections are read as `after_reasoning`. The other styles are trained to reply in one line."""
        return self.config.reasoning_tokens > 0 or self.config.style == "react"

    def parse_reflection(self, reply: str, cut: bool = False) -> Reflection:
        """(tau, e), "no mistake", or neither; never guesses.

        Args:
          reply: what the model said.
          cut: the token limit ended the reply.
        """
        read = reflections.after_reasoning if self._reasons else reflections.from_line
        return read(reply, cut)

    def format_reflection(self, tau: int, experience: str) -> str:
        """The reply that `parse_reflection` reads as (tau, experience)."""
        heading = "Answer: " if self.config.reasoning_tokens else ""
        return f"{heading}[{tau}] {experience}"
