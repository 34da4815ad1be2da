"""`science`: a small laboratory in the style of ScienceWorld, in pure Python, with states as values.

It is not the benchmark but a substitute for laptops and tests. It has fifteen task types on
ScienceWorld's topics, with its action grammar and wording. There are seven rooms instead of eleven, no
Java, and a step takes a few hundred microseconds. Numbers measured here say nothing about
ScienceWorld; for those, use `scienceworld`. A task type has the name of the one that it resembles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from envs.base import EnvDataError, Environment, Options, State, StepResult, Task, one_of
from envs.science.expert import Expert
from envs.science.goals import met, wrong_focus
from envs.science.lab import Lab, Reading
from envs.science.physics import Terminal
from envs.science.tasks import (
    TASKS_PER_FAMILY,
    bootstrap_variations,
    first_observation,
    variations,
)
from envs.science.world import (
    AGENT,
    KINDS,
    NOT_UNDERSTOOD,
    ROOMS,
    UNKNOWN,
    Thing,
    World,
    menu,
    readings,
    terminals,
)
from envs.science.worlds import FAMILIES

_REQUIRED_POINTS = 60  # of 100; optional goals give the rest, and success gives all 100
_FREE_VERBS = ("look around", "inventory", "task", "wait", "wait1")


@dataclasses.dataclass(frozen=True)
class ScienceState(State):
    """Everything that changes.

    Attributes:
      things: all things, see world.Thing. The index of a thing never changes.
      closed: closed doors, as pairs of rooms.
      links: connected terminals, as sorted pairs.
      focus: index of the thing in focus, -1 for none.
      pending: readings of an ambiguous command; the next action chooses one by its number.
      reached: number of required goals reached, in order.
      optional: optional goals that have been met, as bits.
      score: points, 0 to 100; -100 after a wrong focus or a wrong answer.
    """

    things: tuple[Thing, ...] = ()
    closed: frozenset[tuple[str, str]] = frozenset()
    links: tuple[tuple[Terminal, Terminal], ...] = ()
    focus: int = -1
    pending: tuple[Reading, ...] = ()
    reached: int = 0
    optional: int = 0
    score: int = 0


@dataclasses.dataclass(frozen=True)
class ScienceOptions(Options):
    """Options of `science`.

    Attributes:
      task_types: task types to keep; () keeps all.
    """

    task_types: tuple[str, ...] = one_of((), FAMILIES)


class Science(Environment):
    """The laboratory; see the module docstring.

    A reward is the change of the score in points, as in `scienceworld`; success is 100 points. A
    wrong focus or a wrong answer ends the episode with a score of -100.
    """

    name = "science"
    horizon = 30
    Options = ScienceOptions
    player = "envs.science.player:SciencePlayer"
    splits = tuple(TASKS_PER_FAMILY)
    description = (
        "You act in a house with a workshop, a greenhouse and a yard, and do elementary science there"
        " through text commands. OBJ stands for an object that you see or the name of a place: look"
        " around; inventory; task; go to OBJ; teleport to OBJ; open OBJ; close OBJ; pick up OBJ; put"
        " down OBJ; move OBJ to OBJ; look at OBJ; look in OBJ; read OBJ; activate OBJ; deactivate"
        " OBJ; use OBJ on OBJ; pour OBJ in OBJ; dunk OBJ in OBJ; mix OBJ; connect OBJ to OBJ;"
        " disconnect OBJ; eat OBJ; focus on OBJ, which names the thing that the task is about and"
        " fails the task when it is the wrong one; wait (ten moments); wait1 (one moment). When a"
        " command has several readings you get a numbered list: answer with the number alone."
    )

    def __init__(self, horizon: int | None = None, options: ScienceOptions | None = None):
        super().__init__(horizon, options)
        kept = self.options.task_types or FAMILIES
        self._families = tuple(family for family in FAMILIES if family in kept)

    def _list_tasks(self, split: str) -> Sequence[Task]:
        return [
            Task(f"{split}/{family}/{number:04d}", family, split)
            for number in range(TASKS_PER_FAMILY[split])
            for family in self._families
        ]

    def _world(self, task_id: str) -> World:
        parts = task_id.split("/")
        if (
            len(parts) == 3
            and parts[0] in TASKS_PER_FAMILY
            and parts[1] in self._families
            and len(parts[2]) == 4
            and parts[2].isascii()
            and parts[2].isdigit()
            and int(parts[2]) < TASKS_PER_FAMILY[parts[0]]
        ):
            if parts[0] == "bootstrap":
                return bootstrap_variations(parts[1])[int(parts[2])]
            return variations(parts[1])[parts[0]][int(parts[2])]
        raise EnvDataError(
            f"science task {task_id!r}: must be split/family/number with split in"
            f" {tuple(TASKS_PER_FAMILY)}, family in {self._families}, number of four digits within"
            " the split"
        )

    def _reset(self, task_id: str) -> tuple[State, str]:
        world = self._world(task_id)
        return ScienceState(task_id, things=world.things), first_observation(world)

    def lab(self, state: ScienceState) -> Lab:
        """A working copy of a state."""
        world = self._world(state.task_id)
        return Lab(world, state.things, state.closed, state.links, state.focus)

    def goal(self, first_observation: str) -> str:
        """The task description, without its "Your task is to "."""
        return first_observation.partition("\n")[0].removeprefix("Your task is to ")

    # -- rules ---------------------------------------------------------------------------------
    def _step(self, state: ScienceState, action: str) -> tuple[State, StepResult]:
        lab = self.lab(state)
        if state.pending:
            number = action.strip()
            chosen = [r for n, r in enumerate(state.pending) if str(n) == number]
            if not chosen:
                waiting = dataclasses.replace(state, pending=())
                return waiting, StepResult(UNKNOWN, 0.0, False, False, {"valid": False})
        else:
            chosen = list(dict.fromkeys(_resolved(lab, action)))
        if not chosen:
            return state, StepResult(NOT_UNDERSTOOD, 0.0, False, False, {"valid": False})
        if len(chosen) > 1:
            text = menu([_described(lab, reading) for reading in chosen])
            asked = dataclasses.replace(state, pending=tuple(chosen))
            return asked, StepResult(text, 0.0, False, False, {"valid": True})
        observation = lab.play(chosen[0])
        return self._scored(state, lab, observation)

    def _scored(self, state: ScienceState, lab: Lab, observation: str) -> tuple[State, StepResult]:
        """The state after a command, with goals and score updated."""
        world, reached, optional = lab.world, state.reached, state.optional
        failed = wrong_focus(lab, world, reached) or any(met(lab, g, 0) for g in world.fatal)
        for bit, goal in enumerate(world.optional):
            if not optional & (1 << bit) and met(lab, goal, optional):
                optional |= 1 << bit
        while reached < len(world.required) and met(lab, world.required[reached], optional):
            reached += 1
        success = not failed and reached == len(world.required)
        score = 100 if success else -100 if failed else _points(world, reached, optional)
        new = dataclasses.replace(
            state,
            things=tuple(lab.things),
            closed=lab.closed,
            links=tuple(sorted(pair for pair in lab.links.items() if pair[0] < pair[1])),
            focus=lab.focus,
            pending=(),
            reached=reached,
            optional=optional,
            score=score,
        )
        reward = float(score - state.score)
        return new, StepResult(observation, reward, failed, success, {"valid": True})

    # -- what can be done ----------------------------------------------------------------------
    def actions(self, state: ScienceState) -> tuple[str, ...]:
        """Commands that are understood here and can have an effect, each with one reading.

        Other wordings of these commands are understood as well.
        """
        if state.pending:
            return tuple(str(number) for number in range(len(state.pending)))
        lab = self.lab(state)
        seen = lab.visible()
        names = {i: lab.reference(i, seen) for i in seen}
        texts = list(_FREE_VERBS)
        texts += _around(lab)
        texts += _with_things(lab, {i: name for i, name in names.items() if name})
        return tuple(dict.fromkeys(texts))

    def prompt_actions(self, state: ScienceState) -> str:
        """The objects that can be named; the description has the templates of the actions."""
        if state.pending:
            return "Answer with one of the numbers."
        lab = self.lab(state)
        seen = lab.visible()
        names = sorted({name for i in seen if (name := lab.reference(i, seen))})
        doors = [f"door to {room}" for room in lab.neighbours()]
        return f"OBJ can be: {', '.join([*names, *doors, *ROOMS])}."

    def solve(self, state: ScienceState) -> list[str] | None:
        """The scripted expert's actions from here; None if they do not reach the goal in time."""
        plan, current = [], state
        while not current.done:
            if current.pending:
                action = "0"
            else:
                action = Expert(self.lab(current), current.reached, current.optional).next_action()
            current, _ = self.step(current, action)
            plan.append(action)
        return plan if current.success else None


def _points(world: World, reached: int, optional: int) -> int:
    points = _REQUIRED_POINTS * reached // len(world.required)
    if world.optional:
        points += (100 - _REQUIRED_POINTS) * optional.bit_count() // len(world.optional)
    return points


def _resolved(lab: Lab, action: str) -> Iterator[Reading]:
    """All readings of an action with the things that can be named now."""
    among: list[int] | None = None
    for verb, first, second in readings(action):
        if verb in _FREE_VERBS:
            yield (verb, None, None)
            continue
        if verb in ("go to", "teleport to"):
            yield from ((verb, room, None) for room in _rooms(lab, verb, first))
            continue
        if verb in ("open", "close", "look at"):
            yield from ((verb, room, None) for room in lab.neighbours() if _is_door(first, room))
        among = lab.visible() if among is None else among
        if verb == "connect":
            ends = [
                lab.resolve_terminal(text, among) or _connectable(lab, text, among)
                for text in (first, second)
            ]
            yield from ((verb, one, other) for one in ends[0] for other in ends[1])
        elif second:
            targets = lab.resolve(second, among)
            if targets:
                yield from (
                    (verb, i, target) for i in lab.resolve(first, among) for target in targets
                )
        else:
            yield from ((verb, i, None) for i in lab.resolve(first, among))


def _is_door(text: str, room: str) -> bool:
    return text in ("door", f"door to {room}", f"door to the {room}", f"{room} door")


def _rooms(lab: Lab, verb: str, text: str) -> list[int]:
    if verb == "teleport to":
        return [1 + ROOMS.index(text)] if text in ROOMS else []
    known = [*lab.neighbours(), lab.things[lab.here].name]
    return [1 + ROOMS.index(room) for room in known if text == room or _is_door(text, room)]


def _connectable(lab: Lab, text: str, among: Sequence[int]) -> list[int]:
    return [i for i in lab.resolve(text, among) if terminals(lab.things[i].kind)]


def _described(lab: Lab, reading: Reading) -> str:
    """The text of a reading in a menu, with the places of its things."""
    verb, first, second = reading
    if isinstance(first, str):
        return f"{verb} door between {lab.things[lab.here].name} and {first}"
    words = [verb, _placed(lab, first)]
    if second is not None:
        words += [
            {"move": "to", "use": "on", "connect": "to"}.get(verb, "in"),
            _placed(lab, second),
        ]
    return " ".join(words)


def _placed(lab: Lab, part: int | Terminal) -> str:
    if isinstance(part, tuple):
        return f"{part[1]} on {lab.described_place(part[0])}"
    return lab.described_place(part)


def _around(lab: Lab) -> Iterator[str]:
    """Commands for rooms and doors."""
    for room in lab.neighbours():
        yield f"go to {room}"
        yield f"open door to {room}"
        yield f"close door to {room}"
    for room in ROOMS:
        if room != lab.things[lab.here].name:
            yield f"teleport to {room}"


def _with_things(lab: Lab, names: dict[int, str]) -> Iterator[str]:
    """Commands on visible things, by kind; `names` has the unique name of each thing."""
    tools = [i for i in names if lab.things[i].kind == "thermometer"]
    holders = [i for i in names if KINDS[lab.things[i].kind].holds and i not in (AGENT, lab.here)]
    for index, name in names.items():
        thing = lab.things[index]
        kind = KINDS[thing.kind]
        if index == lab.here or index == AGENT:
            continue
        yield f"look at {name}"
        yield f"focus on {name}"
        if kind.holds:
            yield f"look in {name}"
        if kind.openable:
            yield f"{'close' if thing.flag else 'open'} {name}"
        if kind.device:
            yield f"{'deactivate' if thing.flag else 'activate'} {name}"
        if kind.moveable and not thing.stage:
            yield f"{'put down' if thing.place == AGENT else 'pick up'} {name}"
            yield from (f"move {name} to {names[t]}" for t in holders if t != index)
        if thing.kind == "container":
            yield from (f"pour {name} in {names[t]}" for t in holders if t != index)
            yield from (f"dunk {name} in {names[t]}" for t in holders if t != index)
            yield f"mix {name}"
        if thing.kind == "recipe":
            yield f"read {name}"
        if terminals(thing.kind):
            yield f"disconnect {name}"
        yield from (f"use {names[t]} on {name}" for t in tools if t != index)
    yield from _connections(lab, names)


def _connections(lab: Lab, names: dict[int, str]) -> Iterator[str]:
    ends = [
        (index, end)
        for index in names
        for end in terminals(lab.things[index].kind)
        if (index, end) not in lab.links
    ]
    for number, (index, end) in enumerate(ends):
        for other, target in ends[number + 1 :]:
            if other != index:
                yield f"connect {names[index]} {end} to {names[other]} {target}"
