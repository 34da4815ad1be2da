"""The `science` laboratory's scripted expert: it knows the rules, does the experiment, then answers.

Each function gives the next action in the current situation, so the expert can continue from any state.
"""

from __future__ import annotations

from collections.abc import Callable

from envs.science.lab import Lab
from envs.science.world import AGENT, KINDS, NOWHERE


class Expert:
    """Decides one action.

    Attributes:
      lab: the situation; it is not changed.
      reached: number of required goals reached.
    """

    def __init__(self, lab: Lab, reached: int, optional: int):
        self.lab, self.reached, self.optional = lab, reached, optional
        self.seen = set(lab.visible())
        self.required = lab.world.required

    def next_action(self) -> str | None:
        return _PLANS[self.lab.world.family](self)

    # -- moves that plans share: an action, or None if nothing is left to do ----------------------
    def reach(self, index: int) -> str | None:
        """The next action towards a visible thing: go to its room, open what it is in."""
        things = self.lab.things
        if index in self.seen:
            return None
        room = self.lab.room_of(index)
        if room != self.lab.here:
            return f"teleport to {things[room].name}"
        place, shut = things[index].place, index
        while things[place].kind != "room":
            if KINDS[things[place].kind].openable and not things[place].flag:
                shut = place
            place = things[place].place
        return f"open {self.name(shut)}"

    def hold(self, index: int) -> str | None:
        if self.lab.things[index].place == AGENT:
            return None
        return self.reach(index) or f"pick up {self.name(index)}"

    def bring(self, index: int, target: int) -> str | None:
        """The next action to put a thing into, or onto, another."""
        if self.lab.things[index].place == target:
            return None
        action = self.hold(index) or self.reach(target)
        if action:
            return action
        goal = self.lab.things[target]
        if KINDS[goal.kind].openable and not goal.flag:
            return f"open {self.name(target)}"
        return f"move {self.name(index)} to {self.name(target)}"

    def switch_on(self, index: int) -> str | None:
        if self.lab.things[index].flag:
            return None
        return self.reach(index) or f"activate {self.name(index)}"

    def focus(self, index: int) -> str:
        return self.reach(index) or f"focus on {self.name(index)}"

    def name(self, index: int) -> str:
        return self.lab.reference(index)

    def find(self, name: str) -> int:
        return self.lab.find(name)

    def find_in(self, name: str, room: str) -> int:
        """The thing of that name in a room."""
        lab = self.lab
        return next(
            i
            for i, t in enumerate(lab.things)
            if t.name == name and t.place != NOWHERE and lab.things[lab.room_of(i)].name == room
        )

    def portable(self, name: str) -> int | None:
        """The next action for a substance in a container that can be carried."""
        for index, thing in enumerate(self.lab.things):
            held = thing.place >= 0 and self.lab.things[thing.place].kind == "container"
            if thing.name == name and held:
                return index
        return None

    def measure(self, index: int) -> str:
        thermometer = self.find("thermometer")
        return (
            self.hold(thermometer)
            or self.reach(index)
            or f"use {self.name(thermometer)} on {self.name(index)}"
        )


def _change_phase(expert: Expert) -> str:
    lab = expert.lab
    name = expert.required[0][1]
    index = lab.focus if lab.focus >= 0 and expert.reached else expert.portable(name)
    if index is None:  # water comes from the tap
        cup = next(
            i for i, t in enumerate(lab.things) if t.kind == "container" and not lab.inside(i)
        )
        sink = expert.find_in("sink", "kitchen")
        return expert.bring(cup, sink) or expert.switch_on(sink) or "wait1"
    if expert.reached == 0:
        return expert.focus(index)
    device = expert.find("freezer" if lab.world.family == "freeze" else "stove")
    action = expert.bring(lab.things[index].place, device)
    if action is None and lab.world.family != "freeze":
        action = expert.switch_on(device)
    return action or "wait"


def _thermometer(expert: Expert) -> str:
    thermometer, name = expert.find("thermometer"), expert.required[1][1]
    index = expert.find(name)
    if expert.reached == 0:
        return expert.focus(thermometer)
    if expert.reached == 1:
        return expert.hold(thermometer) or expert.focus(index)
    if expert.reached == 2:
        return expert.measure(index)
    return expert.bring(index, expert.find(expert.required[3][2])) or "wait1"


def _melting_point(expert: Expert) -> str:
    lab = expert.lab
    thermometer, index = expert.find("thermometer"), expert.find(expert.required[1][1])
    stove = expert.find("stove")
    if expert.reached == 0:
        return expert.focus(thermometer)
    if expert.reached == 1:
        return expert.hold(thermometer) or expert.focus(index)
    if expert.reached == 2:
        on = expert.bring(lab.things[index].place, stove) or expert.switch_on(stove)
        # Single ticks near the melting point, so that the measurement is close to it.
        melting, _ = lab.world.points(lab.things[index].name)
        far = lab.things[index].temperature + 100 < melting
        return on or ("wait" if far else expert.measure(index))
    if expert.reached == 3:
        return expert.measure(index)
    return expert.focus(expert.find(expert.required[4][1]))


def _conductivity(expert: Expert) -> str:
    lab, name = expert.lab, expert.required[0][1]
    sample, battery = expert.find(name), expert.find("battery")
    if expert.reached == 0:
        return expert.focus(sample)
    if expert.reached == 2:
        return expert.bring(sample, expert.find(expert.required[2][2])) or "wait1"
    if not {sample, battery} <= expert.seen:
        return expert.hold(sample) or expert.reach(battery) or "wait1"
    wires = [i for i, t in enumerate(lab.things) if t.kind == "wire"]
    bulb = next(i for i, t in enumerate(lab.things) if t.kind == "bulb")
    chain = [
        ((battery, "anode"), (wires[0], "terminal 1")),
        ((wires[0], "terminal 2"), (bulb, "anode")),
        ((bulb, "cathode"), (wires[1], "terminal 1")),
        ((wires[1], "terminal 2"), (sample, "terminal 1")),
        ((sample, "terminal 2"), (wires[2], "terminal 1")),
        ((wires[2], "terminal 2"), (battery, "cathode")),
    ]
    for one, other in chain:
        if lab.links.get(one) == other:
            continue
        for end in (one, other):
            if end in lab.links:  # connected to something else: disconnect it
                return f"disconnect {expert.name(end[0])}"
        texts = [f"{expert.name(index)} {end}" for index, end in (one, other)]
        return f"connect {texts[0]} to {texts[1]}"
    return "wait1"


def _find(expert: Expert) -> str:
    lab = expert.lab
    if expert.reached == 0:
        kinds = expert.required[0][1]
        wanted = ("animal",) if "animal" in kinds else ("object",)
        boxes = {goal[1] for goal in expert.required if goal[0] == "focus-in"}
        choice = [
            i
            for i, t in enumerate(lab.things)
            if t.kind in wanted and t.place != NOWHERE and t.name not in boxes
        ]
        near = [i for i in choice if i in expert.seen] or choice
        return expert.focus(near[0])
    return expert.bring(lab.focus, expert.find(expert.required[1][1])) or "wait1"


def _plant_in_pot(expert: Expert, seed: int, pot: int) -> str | None:
    if expert.lab.things[seed].stage or expert.lab.things[seed].place == pot:
        return None
    return expert.bring(seed, pot)


def _grow(expert: Expert) -> str:
    lab = expert.lab
    seed = expert.find(expert.required[0][1])
    if expert.reached == 0:
        return expert.focus(seed)
    action = _plant_in_pot(expert, seed, expert.find("flower pot 1"))
    if action:
        return action
    pot = lab.things[seed].place
    if any(lab.things[i].name == "water" for i in lab.inside(pot)):
        return "wait"
    jug, sink = expert.find("jug"), expert.find_in("sink", "greenhouse")
    if not any(lab.things[i].name == "water" for i in lab.inside(jug)):
        return expert.bring(jug, sink) or expert.switch_on(sink) or "wait1"
    return (
        expert.reach(jug) or expert.reach(pot) or f"pour {expert.name(jug)} in {expert.name(pot)}"
    )


def _mix(expert: Expert) -> str:
    """Read the recipe if there is one, put both ingredients into one container, mix."""
    lab, product = expert.lab, expert.required[-1][1]
    if expert.reached == len(expert.required) - 1:
        return expert.focus(expert.find(product))
    if lab.world.recipe and not expert.optional & 2:
        recipe = expert.find("recipe")
        return expert.reach(recipe) or f"read {expert.name(recipe)}"
    goal = next(goal for goal in lab.world.optional if goal[0] == "together")
    found = [expert.portable(name) for name in goal[1:]]
    if None in found:
        return "wait1"  # an ingredient has been poured away
    pot = lab.things[found[0]].place
    if lab.world.family == "mix-paint":
        pot = expert.find("jug")
    for index in found:
        cup = lab.things[index].place
        if cup != pot:
            return (
                (expert.hold(cup) if cup not in expert.seen or pot not in expert.seen else None)
                or expert.reach(pot)
                or f"pour {expert.name(cup)} in {expert.name(pot)}"
            )
    return expert.reach(pot) or f"mix {expert.name(pot)}"


def _lifespan(expert: Expert) -> str:
    return expert.focus(expert.find(expert.required[0][1]))


def _plane(expert: Expert) -> str:
    lab = expert.lab
    if expert.reached:
        return expert.focus(expert.find(expert.required[1][1]))
    block = next(i for i, t in enumerate(lab.things) if t.kind == "block")
    for bit, goal in enumerate(lab.world.optional):
        if goal[0] == "slid" and not expert.optional & (1 << bit):
            plane = expert.find(goal[1])
            return expert.bring(block, plane) or f"look at {expert.name(plane)}"
    return "wait1"


def _mendel(expert: Expert) -> str:
    lab = expert.lab
    if expert.reached:
        return expert.focus(expert.find(expert.required[1][1]))
    hive = expert.find("bee hive")
    seed = next(i for i, t in enumerate(lab.things) if t.kind == "seed")
    if lab.things[seed].place == NOWHERE:
        action = expert.reach(hive)
        return action or ("wait1" if lab.things[hive].flag else f"open {expert.name(hive)}")
    return _plant_in_pot(expert, seed, expert.find("flower pot 3")) or "wait"


_PLANS: dict[str, Callable[[Expert], str]] = {
    "boil": _change_phase,
    "melt": _change_phase,
    "freeze": _change_phase,
    "use-thermometer": _thermometer,
    "measure-melting-point": _melting_point,
    "test-conductivity": _conductivity,
    "find-living-thing": _find,
    "find-non-living-thing": _find,
    "grow-plant": _grow,
    "chemistry-mix": _mix,
    "mix-paint": _mix,
    "lifespan-longest-lived": _lifespan,
    "lifespan-shortest-lived": _lifespan,
    "inclined-plane": _plane,
    "mendelian-genetics": _mendel,
}
