"""The `science` laboratory's physics: where things are, heat, circuits, growth, and the clock.

`Physics` is a working copy of a state. It is made from a state, changed during one step, and turned
into the next state. The state itself never changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.science.world import (
    AGENT,
    KINDS,
    NOWHERE,
    POD_TICKS,
    ROOM_TEMPERATURE,
    SOURCES,
    STAGE_TICKS,
    SUBSTANCES,
    Thing,
    World,
    phase,
    terminals,
)

Terminal = tuple[int, str]  # (thing, name of one of its terminals)


class Physics:
    """A working copy of a state.

    Attributes:
      things: as in the state, replaced one by one.
      closed: closed doors, as pairs of room names in DOORS.
      links: connected terminals, in both directions.
      focus: index of the thing in focus, -1 for none.
      events: what happened in this step, e.g. ("focus", 12), ("measured", 7).
    """

    def __init__(
        self,
        world: World,
        things: Sequence[Thing],
        closed: frozenset[tuple[str, str]],
        links: Sequence[tuple[Terminal, Terminal]],
        focus: int,
    ):
        self.world = world
        self.things = list(things)
        self.closed = closed
        self.links: dict[Terminal, Terminal] = {}
        for one, other in links:
            self.links[one], self.links[other] = other, one
        self.focus = focus
        self.events: set[tuple] = set()

    # -- places ---------------------------------------------------------------------------------
    @property
    def here(self) -> int:
        return self.things[AGENT].place

    def find(self, name: str) -> int:
        """Index of the first thing of that name that still exists; KeyError without one."""
        for index, thing in enumerate(self.things):
            if thing.name == name and thing.place != NOWHERE:
                return index
        raise KeyError(name)

    def inside(self, index: int) -> list[int]:
        return [i for i, thing in enumerate(self.things) if thing.place == index]

    def room_of(self, index: int) -> int:
        while self.things[index].kind != "room":
            index = self.things[index].place
        return index

    def change(self, index: int, **changes: object) -> None:
        self.things[index] = self.things[index]._replace(**changes)

    # -- matter --------------------------------------------------------------------------------
    def temperature(self, index: int) -> float | None:
        """Degrees Celsius of a thing, or of a container's content; None if it has none."""
        thing = self.things[index]
        if thing.kind == "substance":
            return thing.temperature
        if thing.kind == "sample":
            return self.world.samples.get(thing.name, ROOM_TEMPERATURE)
        if not KINDS[thing.kind].moveable:
            return None
        inner = [self.things[i].temperature for i in self.inside(index)]
        return inner[0] if inner else ROOM_TEMPERATURE

    def is_liquid(self, index: int) -> bool:
        thing = self.things[index]
        return thing.kind == "substance" and phase(self.world, thing) == "liquid"

    def add_water(self, index: int) -> None:
        if not any(self.things[i].name == "water" for i in self.inside(index)):
            self.things.append(Thing("water", "substance", index))

    def mixable(self, index: int) -> bool:
        """True if a substance is in its usual state of matter: ice does not dissolve salt here."""
        thing = self.things[index]
        if thing.kind != "substance" or thing.name not in SUBSTANCES:
            return False
        solid = SUBSTANCES[thing.name][0] > ROOM_TEMPERATURE
        return phase(self.world, thing) == ("solid" if solid else "liquid")

    # -- circuits ------------------------------------------------------------------------------
    def loosen(self, index: int) -> str:
        ends = [end for end in self.links if end[0] == index]
        for end in ends:
            self.links.pop(self.links.pop(end))
        return f"(disconnecting {self.things[index].name})" if ends else ""

    def loop(self) -> list[int]:
        """The things between the battery's anode and cathode; [] if the circuit is open."""
        battery = next((i for i, t in enumerate(self.things) if t.kind == "battery"), -1)
        passed, end = [], self.links.get((battery, "anode"))
        while end is not None and end[0] != battery:
            index, name = end
            passed.append(index)
            ends = terminals(self.things[index].kind)
            end = self.links.get((index, ends[1] if name == ends[0] else ends[0]))
        return passed if end == (battery, "cathode") else []

    def lit(self) -> list[int]:
        """The bulbs in the loop, if everything in it conducts."""
        loop = self.loop() if self.links else []
        names = [self.things[i] for i in loop]
        conducts = all(t.kind != "sample" or self.world.samples.get(t.name, 0) for t in names)
        return [i for i in loop if conducts and self.things[i].kind == "bulb"]

    # -- time ----------------------------------------------------------------------------------
    def tick(self, count: int) -> None:
        for _ in range(count):
            for index, thing in enumerate(self.things):
                if thing.place == NOWHERE:
                    continue
                if thing.kind == "substance":
                    self._exchange_heat(index, thing)
                elif thing.kind == "basin":
                    if thing.flag:
                        for inner in self.inside(index):
                            if self.things[inner].kind == "container":
                                self.add_water(inner)
                elif thing.kind == "seed":
                    self._grow(index, thing)
                elif thing.kind == "block":
                    speed = self.world.speeds.get(self.things[thing.place].name)
                    if speed is not None and thing.clock < 100:
                        self.change(index, clock=min(100, thing.clock + speed))
                elif thing.kind == "hive" and thing.flag and thing.clock < POD_TICKS:
                    self.change(index, clock=thing.clock + 1)
                    if thing.clock + 1 == POD_TICKS:
                        self._set_pod()

    def _exchange_heat(self, index: int, thing: Thing) -> None:
        place, target, rate = thing.place, ROOM_TEMPERATURE, 0.02
        while place >= 0:
            holder = self.things[place]
            if holder.name in SOURCES and (holder.flag or holder.kind == "cabinet"):
                target, rate = SOURCES[holder.name]
                break
            place = holder.place
        if thing.temperature != target:
            # Rounded, so that an untouched substance reaches its target and the state stops changing.
            warmer = round(thing.temperature + (target - thing.temperature) * rate, 2)
            self.change(index, temperature=target if warmer == thing.temperature else warmer)
            now = phase(self.world, self.things[index])
            if now != phase(self.world, thing):
                # Recorded at once: within one `wait`, ice on the stove can become water, then steam.
                self.events.add(("phase", index, now))

    def _grow(self, index: int, thing: Thing) -> None:
        if self.things[thing.place].kind != "pot" or thing.stage == 3:
            return
        kinds = {(self.things[i].name, self.things[i].kind) for i in self.inside(thing.place)}
        if ("soil", "soil") not in kinds or ("water", "substance") not in kinds:
            return
        grown = thing.clock + 1
        if grown == STAGE_TICKS:
            self.change(index, stage=thing.stage + 1, clock=0)
        else:
            self.change(index, clock=grown)

    def _set_pod(self) -> None:
        """Bees cross the two parents: their seed, until now NOWHERE, grows on the first."""
        mother = next(i for i, t in enumerate(self.things) if t.kind == "plant")
        for index, thing in enumerate(self.things):
            if thing.kind == "seed" and thing.place == NOWHERE:
                self.change(index, place=mother)
                return
