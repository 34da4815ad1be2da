"""The goals of `science` tasks: tuples such as ("in", "copper coin", "red box"), checked by `met`."""

from __future__ import annotations

from envs.science.lab import Lab
from envs.science.world import AGENT, NOWHERE, World, phase


def _named(lab: Lab, name: str) -> list[int]:
    return [i for i, t in enumerate(lab.things) if t.name == name and t.place != NOWHERE]


def _held_by(lab: Lab, index: int, holder: str) -> bool:
    """True if the thing is in a `holder`, directly or deeper."""
    while index >= 0:
        index = lab.things[index].place
        if index >= 0 and lab.things[index].name == holder:
            return True
    return False


def met(lab: Lab, goal: tuple, optional: int) -> bool:
    """True if a goal holds after this step; `optional` has the optional goals met before, as bits."""
    kind, *rest = goal
    things, focus = lab.things, lab.focus
    if kind == "focus":
        return any(("focus", i) in lab.events for i in _named(lab, rest[0]))
    if kind == "focus-kind":
        return ("focus", focus) in lab.events and things[focus].kind in rest[0]
    if kind == "experiments":
        return optional & ((1 << rest[0]) - 1) == (1 << rest[0]) - 1
    if kind.startswith("focus-") or kind == "measured-focus":
        return focus >= 0 and _met_focus(lab, kind, rest)
    if kind in ("measured", "looked"):
        return any((kind, i) in lab.events for i in _named(lab, rest[0]))
    if kind == "read":
        return any(event[0] == "read" for event in lab.events)
    if kind == "at":
        return things[lab.here].name == rest[0]
    if kind == "running":
        return any(things[i].flag for i in _named(lab, rest[0]))
    if kind == "exists":
        return bool(_named(lab, rest[0]))
    if kind == "together":
        holders = [{things[i].place for i in _named(lab, name)} for name in rest]
        return bool(set.intersection(*holders))
    return any(_met_by(lab, i, kind, rest) for i in _named(lab, rest[0]))


def _in_phase(lab: Lab, index: int, wanted: str) -> bool:
    """True if the substance is in that state of matter, or entered it during the step."""
    thing = lab.things[index]
    if thing.kind != "substance":
        return False
    return ("phase", index, wanted) in lab.events or phase(lab.world, thing) == wanted


def _met_focus(lab: Lab, kind: str, rest: list) -> bool:
    thing = lab.things[lab.focus]
    if kind == "focus-phase":
        return _in_phase(lab, lab.focus, rest[0])
    if kind == "focus-near":
        return _held_by(lab, lab.focus, rest[0])
    if kind == "focus-in":
        return thing.place >= 0 and lab.things[thing.place].name == rest[0]
    if kind == "focus-held":
        return thing.place == AGENT
    return ("measured", lab.focus) in lab.events


def _met_by(lab: Lab, index: int, kind: str, rest: list) -> bool:
    thing = lab.things[index]
    if kind == "phase":
        return _in_phase(lab, index, rest[1])
    if kind == "in":
        return lab.things[thing.place].name == rest[1]
    if kind == "in-kind":
        return lab.things[thing.place].kind == rest[1]
    if kind == "near":
        return _held_by(lab, index, rest[1])
    if kind == "held":
        return thing.place == AGENT
    if kind == "stage":
        return thing.stage >= rest[1]
    if kind == "linked":
        return any(end[0] == index for end in lab.links)
    if kind in ("tested", "lit-loop"):
        loop = lab.loop()
        return index in loop and any(lab.things[i].kind == "bulb" for i in loop)
    if kind == "slid":
        return any(lab.things[i].clock >= 20 for i in lab.inside(index))
    raise KeyError(kind)


def wrong_focus(lab: Lab, world: World, reached: int) -> bool:
    """True if the focus fails the task: no goal asks for it, now or earlier, as in ScienceWorld."""
    if not any(event[0] == "focus" for event in lab.events):
        return False
    asked = [g for g in world.required[: reached + 1] if g[0] in ("focus", "focus-kind")]
    return not any(met(lab, goal, 0) for goal in asked)
