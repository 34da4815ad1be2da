"""Every prompt string and its parser, in one place; parsers are total.

Three styles. "plain": the user turn is the observation and the whole reply is the action; the
embedded base model speaks it. "react": instructions in words, and the reply is
`<think>...</think><action>...</action>` as in verl-agent; instruct models speak it. "program":
the reply's first fenced block is the action, many lines long. Steps are numbered in what the model
reads, so that a reflection can name one.

Two context modes. "dialogue": one growing conversation. "window": one user message, rebuilt every
step from the task, the last n observation-action pairs and the current observation
(verl-agent agent_system/environments/prompts). Which parts a benchmark's message has, and how an
action is read out of a reply, differs between verl-agent's environments: see `Form`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from envs.base import EnvDataError
from envs.fences import first_program

STYLES = ("plain", "react", "program")
MAX_ACTION_CHARS = 4096
MAX_PROGRAM_CHARS = 65536
MAX_EXPERIENCE_CHARS = 400

_STEP_REPLY = re.compile(
    r"(?:step)?\s*\[?(\d{1,9})(\]?)(\s*[:.)\-]?\s*(.*))", re.IGNORECASE | re.DOTALL
)
# What continues a number, so that it is not the number of one step: 1-3, 2,3, 1.5, 10**9; 1e3, 3rd.
_MORE_NUMBER = re.compile(r"[.,/*^\-\u2010-\u2015]*\d|[a-z]", re.IGNORECASE | re.ASCII)
_JOIN = r"(?:and|or|to|through|thru|until|till)\b"
# A further step after the first: [1][3], [1] - [3], [1] to 3, [1], 3.
_MORE_STEPS = re.compile(
    rf"[\s,;:.&/~+\-\u2010-\u2015]*(?:{_JOIN}\s*)?\[\s*[+\-]?\d"
    rf"|\s*(?:[,&/~+]|{_JOIN})\s*\d",
    re.IGNORECASE,
)
# The same where no bracket says where the number ends: 1 - 3, 3 or 5.
_MORE_BARE = re.compile(r"\s*[\-\u2010-\u2015]\s*\d")
_ACTION_OPENS, _ACTION_CLOSES = "<action>", "</action>"
_CHINESE = re.compile("[\u4e00-\u9fff]")
_NO_MISTAKE = re.compile(r"no mistake\b", re.IGNORECASE)

_INSTRUCTION = (
    "Reason step by step inside <think> </think>, then give exactly one action inside"
    " <action> </action>."
)
_PROGRAM_INSTRUCTION = (
    "Reply with one complete Python 3 program in a block fenced by ```python and ```; only the first"
    " block counts."
)


@dataclasses.dataclass(frozen=True)
class Form:
    """What is particular to one environment's react messages and replies in verl-agent.

    Attributes:
      role: the sentence that opens a window message.
      describes: the description of the environment follows it.
      goal_first: the first message states the task too, not only the later ones.
      actions_open, quote, action_end, actions_close: the list of admissible actions: what it opens
        with, what is around each, between two, and at the end.
      instruction: what to answer, the last part.
      fallback_chars: N; the action of a reply without tags is its last N characters.
      pool: the action is the first of these that occurs in what the tags hold; (): all they hold.
      idle: the action shown in the history where a reply held none.
      keeps_case: the reply is read as it stands, not in lower case; then tags in capitals are none.
      latin_only: a reply with Chinese characters is not well-formed.
      max_chars: a longer message leaves the history out; 0: no limit.
    """

    role: str = "You are an expert agent in a text environment."
    describes: bool = True
    goal_first: bool = False
    actions_open: str = "["
    action_end: str = ", "
    actions_close: str = "]"
    quote: str = "'"
    instruction: str = _INSTRUCTION
    fallback_chars: int = 30
    pool: tuple[str, ...] = ()
    idle: str = ""
    keeps_case: bool = False
    latin_only: bool = False
    max_chars: int = 0


_ALFWORLD = Form(
    role="You are an expert agent in the ALFRED household environment.",
    describes=False,
    action_end="\n ",
    latin_only=True,
)
# Environments that are not listed have the general form.
FORMS = {
    "alfworld": _ALFWORLD,
    "alfworld_real": _ALFWORLD,
    # EPO's fork, the only one with this environment (agent_system/environments, sciworld).
    "scienceworld": Form(
        role="You are an expert agent in the ScienceWorld environment.",
        fallback_chars=20,
        keeps_case=True,
        latin_only=True,
    ),
    "sokoban": Form(
        role="You are an expert agent in the Sokoban environment.",
        quote='"',
        instruction=(
            "Look where boxes and targets are, plan the pushes and mind the corners: reason step by"
            " step inside <think> </think>, then give exactly one admissible action, for this step"
            " only, inside <action> </action>."
        ),
        fallback_chars=0,
        pool=("up", "down", "left", "right", "still"),
        idle="still",
    ),
    "webshop": Form(
        role="You are an expert agent that shops by itself in the WebShop environment.",
        describes=False,
        goal_first=True,
        actions_open="\n[\n",
        action_end=",\n",
        actions_close=",\n]",
        instruction=(
            "Reason step by step inside <think> </think> about where you are and which admissible"
            " action brings the purchase closest, then give exactly one action inside"
            " <action> </action>."
        ),
        fallback_chars=20,
        latin_only=True,
        max_chars=13_000,
    ),
}


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
      style: one of STYLES.
      env: the environment's name; it chooses the Form.
    """

    description: str
    style: str = "plain"
    env: str = ""

    def __post_init__(self):
        if self.style not in STYLES:
            raise EnvDataError(f"env.prompt_style = {self.style!r}: must be one of {STYLES}")

    @property
    def form(self) -> Form:
        return FORMS.get(self.env, Form())

    # -- rendering -----------------------------------------------------------------------------
    def observation(self, step: int, observation: str, experience: str | None = None) -> str:
        """The user turn before action `step`; `experience` is the e that opened this branch."""
        text = f"[{step}] {observation}"
        if step == 1 and self.style != "plain":
            text = f"{self.description}\n\n[{step}] {self._bare(observation)}"
        if experience is not None:
            text += f"\nExperience: {experience}"
        if self.style != "plain":
            text += f"\n{self._instruction()}"
        return text

    def _instruction(self) -> str:
        return _PROGRAM_INSTRUCTION if self.style == "program" else self.form.instruction

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
        (agent_system/environments/prompts, env_manager.py): role, description (Sokoban), task,
        steps taken with the last pairs as `[Observation n: '...', Action n: '...']`, step number
        and current observation, admissible actions, instruction. The first message, and every one
        with a window of 0, leaves out what has been so far, the step number, and the task where the
        first observation states it.

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
        if self.style == "plain":
            return self._plain_window(first, history, step, observation, experience)
        if self.style == "program":
            return self._program_window(first, history, step, observation, experience, actions)
        text = self._react_window(history, step, observation, experience, goal, actions)
        # The history that a reflection is asked about is never cut.
        if history and actions is not None and 0 < self.form.max_chars < len(text):
            return self._react_window((), step, observation, experience, goal, actions)
        return text

    def _plain_window(self, first, history, step, observation, experience) -> str:
        lines = [first]
        for number, (seen, done) in enumerate(history, step - len(history)):
            if number > 1:
                lines.append(f"[{number}] {seen}")
            lines.append(f"[{number}] > {done}")
        if step > 1:
            lines.append(f"[{step}] {observation}")
        if experience is not None:
            lines.append(f"Experience: {experience}")
        return "\n".join(lines)

    def _react_window(self, history, step, observation, experience, goal, actions) -> str:
        form = self.form
        lines = [form.role]
        if form.describes:
            lines.append(self.description)
        # Unlike verl-agent, a window of 0 does not hide the task after the first step.
        if goal and (step > 1 or form.goal_first):
            lines.append(f"Your task is to: {goal}")
        now = "Your current observation is:"
        if history:
            lines.append(
                f"So far you have already taken {step - 1} step(s). The last {len(history)}"
                " observations and the actions you took:"
            )
            for number, (seen, done) in enumerate(history, step - len(history)):
                seen, done = self._bare(seen), done or form.idle
                lines.append(f"[Observation {number}: '{seen}', Action {number}: '{done}']")
            now = f"You are now at step {step}. {now}"
        lines += [now, self._bare(observation)]
        if isinstance(actions, str):
            lines.append(actions)
        elif actions:
            quoted = [f"{form.quote}{action}{form.quote}" for action in actions]
            listed = f"{form.actions_open}{form.action_end.join(quoted)}{form.actions_close}"
            lines.append(f"The actions that are admissible now: {listed}.")
        if experience is not None:
            lines.append(f"Experience: {experience}")
        if actions is not None:
            lines.append(form.instruction)
        return "\n".join(lines)

    def _program_window(self, first, history, step, observation, experience, actions) -> str:
        """The problem, the last submissions with what was said about each, and now."""
        parts = [self.description, self._bare(first)]
        start = step - len(history)
        said = [*(seen for seen, _ in history), observation][1:]
        for number, ((_, program), feedback) in enumerate(zip(history, said, strict=True), start):
            parts.append(f"[{number}] Your submission:\n{self.format_action(program)}")
            parts.append(f"[{number}] Feedback: {feedback}")
        if experience is not None:
            parts.append(f"Experience: {experience}")
        if actions is not None:
            parts.append(f"Now write submission {step}. {self._instruction()}")
        return "\n\n".join(parts)

    def _bare(self, observation: str) -> str:
        """An observation without the description, which some environments begin with."""
        return observation.removeprefix(self.description).lstrip("\n")

    def reflection(self, step: int, observation: str, history: str = "") -> str:
        """p_refl (arXiv 2603.16843, Stage 1), asked when `observation` is what action `step` - 1 brought.

        `history` is the rendered episode for contexts that do not hold it already (window mode).
        """
        question = "Reflect: which step was the first mistake, and what should be done instead?"
        if self.style != "plain":
            question += (
                "\nAnswer with one line: the step number in brackets and one short piece of advice,"
                " for example `[3] open the drawer before looking elsewhere.`, or `no mistake`."
            )
        return f"{history or f'[{step}] {observation}'}\n{question}"

    # -- parsing -------------------------------------------------------------------------------
    def parse_action(self, reply: str) -> tuple[str, bool]:
        """(action, well-formed). Any string gives an action; an odd one is the environment's no-op.

        "react" is read as verl-agent reads it (env_package/*/projection.py): what is between the
        first opening and the first closing tag, in lower case but for Form.keeps_case, is played
        even where the thought is missing, but then the reply is not well-formed. That includes
        nothing at all where the thought itself has a closing tag.
        """
        if self.style == "plain":
            action = " ".join(reply.split())[:MAX_ACTION_CHARS]
            return action, bool(action)
        if self.style == "program":
            program, fenced = first_program(reply.rpartition("</think>")[2])
            program = program[:MAX_PROGRAM_CHARS]
            return program, fenced and bool(program.strip())
        form = self.form
        text = reply if form.keeps_case else reply.lower()
        opens, closes = text.find(_ACTION_OPENS), text.find(_ACTION_CLOSES)
        if opens < 0 or closes < 0:
            return text[max(0, len(text) - form.fallback_chars) :], False
        action = text[opens + len(_ACTION_OPENS) : closes].strip()[:MAX_ACTION_CHARS]
        if form.pool:
            action = next((word for word in form.pool if word in action), "")
        thought = "<think>" in reply and "</think>" in reply
        latin = not (form.latin_only and _CHINESE.search(reply))
        return action, thought and latin and bool(action or not form.pool)

    def format_action(self, action: str) -> str:
        """The reply that `parse_action` reads as `action` (for scripted players)."""
        if self.style == "program":
            inside = max((len(run) for run in re.findall(r"`+", action)), default=0)
            fence = "`" * max(3, inside + 1)
            return f"{fence}python\n{action}\n{fence}"
        return action if self.style == "plain" else f"<think></think><action>{action}</action>"

    def parse_reflection(self, reply: str) -> Reflection:
        """(tau, e) out of `[3] advice`, `no mistake`, or neither; never guesses.

        Unparsable are: a number that cannot be a step's (1.5, 10**9), several steps (1-3, [1][2]),
        and advice without a letter or digit.
        """
        text = reply.rpartition("</think>")[2].strip()
        if _NO_MISTAKE.match(text):
            return Reflection("no_mistake")
        found = _STEP_REPLY.match(text)
        if found is None:
            return Reflection("unparsable")
        number, bracket, rest, advice = found.groups()
        if bracket:
            broken = _MORE_STEPS.match(rest)
        else:
            # The bracket holds more than the number: [1-3], [1 or 2].
            inside, ends, _ = rest.partition("]")
            broken = _MORE_NUMBER.match(rest) or (ends and "[" not in inside)
            broken = broken or _MORE_STEPS.match(rest) or _MORE_BARE.match(rest)
        experience = " ".join(advice.split())
        if broken or not any(map(str.isalnum, experience)):
            return Reflection("unparsable")
        return Reflection("ok", int(number), experience[:MAX_EXPERIENCE_CHARS])

    def format_reflection(self, tau: int, experience: str) -> str:
        """The reply that `parse_reflection` reads as (tau, experience)."""
        return f"[{tau}] {experience}"
