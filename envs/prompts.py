"""Every prompt string and its parser, in one place; parsers are total.

Two styles. "plain": the user turn is the observation and the whole reply is the action; the
embedded base model speaks it. "react": instructions in words, and the reply is
`<think>...</think><action>...</action>` as in verl-agent; instruct models speak it. Steps are
numbered in what the model reads, so that a reflection can name one.

Two context modes. "dialogue": one growing conversation. "window": one user message, rebuilt every
step from the task, the last n observation-action pairs and the current observation
(verl-agent agent_system/environments/prompts).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from envs.base import EnvDataError

STYLES = ("plain", "react")
MAX_ACTION_CHARS = 4096
MAX_EXPERIENCE_CHARS = 400

_STEP_REPLY = re.compile(
    r"(?:step)?\s*\[?(\d{1,9})\]?\s*[:.)\-]?\s*(.*)", re.IGNORECASE | re.DOTALL
)
_ACTION_TAG = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_NO_MISTAKE = re.compile(r"no mistake\b", re.IGNORECASE)

_INSTRUCTION = (
    "Reason step by step inside <think> </think>, then give exactly one action inside"
    " <action> </action>."
)


@dataclasses.dataclass(frozen=True)
class Reflection:
    """A parsed reflection (tau, e).

    Attributes:
      status: "ok", "no_mistake" or "unparsable".
      tau: the 1-based step that went wrong when status is "ok"; its range is for the caller to check.
      experience: the advice e, at most MAX_EXPERIENCE_CHARS characters.
    """

    status: str
    tau: int | None = None
    experience: str | None = None


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Renders turns and parses replies for one environment.

    Attributes:
      description: one paragraph about the environment and its actions.
      style: "plain" or "react".
    """

    description: str
    style: str = "plain"

    def __post_init__(self):
        if self.style not in STYLES:
            raise EnvDataError(f"env.prompt_style = {self.style!r}: must be one of {STYLES}")

    # -- rendering -----------------------------------------------------------------------------
    def observation(self, step: int, observation: str, experience: str | None = None) -> str:
        """The user turn before action `step`; `experience` is the e that opened this branch."""
        text = f"[{step}] {observation}"
        if step == 1 and self.style == "react":
            text = f"{self.description}\n\n[{step}] {self._bare(observation)}"
        if experience is not None:
            text += f"\nExperience: {experience}"
        if self.style == "react":
            text += f"\n{_INSTRUCTION}"
        return text

    def window(
        self,
        first: str,
        history: Sequence[tuple[str, str]],
        step: int,
        observation: str,
        experience: str | None = None,
        goal: str = "",
        actions: Sequence[str] | str | None = (),
    ) -> str:
        """One self-contained user turn: task, the last (observation, action) pairs, now.

        The parts of the "react" style and their order are verl-agent's
        (agent_system/environments/prompts, env_manager.py): role, task, steps taken with the last
        pairs as `[Observation n: '...', Action n: '...']`, current observation, admissible actions,
        instruction; the first step has neither task (the observation states it) nor pairs.

        Args:
          first: first observation of the episode, which states the task.
          history: (observation, action) pairs shown, oldest first; they end at step - 1.
          step: number of the action asked for.
          observation: current observation.
          experience: e, or None.
          goal: the task in words; "" where every observation shows it.
          actions: admissible now, or a text about them; () leaves that out, None the request for an
            action too.
        """
        start = step - len(history)
        if self.style == "plain":
            lines = [first]
            for number, (seen, done) in enumerate(history, start):
                if number > 1:
                    lines.append(f"[{number}] {seen}")
                lines.append(f"[{number}] > {done}")
            if step > 1:
                lines.append(f"[{step}] {observation}")
            if experience is not None:
                lines.append(f"Experience: {experience}")
            return "\n".join(lines)
        lines = ["You are an expert agent in a text environment.", self.description]
        if step > 1:
            if goal:
                lines.append(f"Your task is to: {goal}")
            lines.append(f"So far you have already taken {step - 1} step(s).")
        if history:
            lines.append(f"The last {len(history)} observations and the actions you took:")
        for number, (seen, done) in enumerate(history, start):
            lines.append(f"[Observation {number}: '{self._bare(seen)}', Action {number}: '{done}']")
        lines.append(f"You are now at step {step}. Your current observation is:")
        lines.append(self._bare(observation))
        if isinstance(actions, str):
            lines.append(actions)
        elif actions:
            listed = ", ".join(f"'{action}'" for action in actions)
            lines.append(f"The actions that are admissible now: [{listed}].")
        if experience is not None:
            lines.append(f"Experience: {experience}")
        if actions is not None:
            lines.append(_INSTRUCTION)
        return "\n".join(lines)

    def _bare(self, observation: str) -> str:
        """An observation without the description, which some environments begin with."""
        return observation.removeprefix(self.description).lstrip("\n")

    def reflection(self, step: int, observation: str, history: str = "") -> str:
        """p_refl (arXiv 2603.16843, Stage 1), asked when `observation` is what action `step` - 1 brought.

        `history` is the rendered episode for contexts that do not hold it already (window mode).
        """
        question = "Reflect: which step was the first mistake, and what should be done instead?"
        if self.style == "react":
            question += (
                "\nAnswer with one line: the step number in brackets and one short piece of advice,"
                " for example `[3] open the drawer before looking elsewhere.`, or `no mistake`."
            )
        return f"{history or f'[{step}] {observation}'}\n{question}"

    # -- parsing -------------------------------------------------------------------------------
    def parse_action(self, reply: str) -> tuple[str, bool]:
        """(action, well-formed). Any string gives an action; an odd one is the environment's no-op."""
        if self.style == "react":
            found = _ACTION_TAG.search(reply)
            if found is None:
                return reply.strip()[-30:].lower(), False
            return found.group(1).strip().lower()[:MAX_ACTION_CHARS], True
        action = " ".join(reply.split())[:MAX_ACTION_CHARS]
        return action, bool(action)

    def format_action(self, action: str) -> str:
        """The reply that `parse_action` reads as `action` (for scripted players)."""
        return action if self.style == "plain" else f"<think></think><action>{action}</action>"

    def parse_reflection(self, reply: str) -> Reflection:
        """(tau, e) out of `[3] advice`, `no mistake`, or neither; never guesses."""
        text = reply.rpartition("</think>")[2].strip()
        if _NO_MISTAKE.match(text):
            return Reflection("no_mistake")
        found = _STEP_REPLY.match(text)
        experience = " ".join(found.group(2).split()) if found else ""
        if not experience:
            return Reflection("unparsable")
        return Reflection("ok", int(found.group(1)), experience[:MAX_EXPERIENCE_CHARS])

    def format_reflection(self, tau: int, experience: str) -> str:
        """The reply that `parse_reflection` reads as (tau, experience)."""
        return f"[{tau}] {experience}"
