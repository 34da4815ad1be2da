"""The `science` laboratory's commands: which thing a text means, what a command does and says."""

from __future__ import annotations

from collections.abc import Sequence

from envs.science.physics import Physics, Terminal
from envs.science.world import (
    AGENT,
    DOORS,
    KINDS,
    LIQUIDS,
    NOWHERE,
    PAINTS,
    RECIPES,
    ROOM_TEMPERATURE,
    ROOMS,
    Thing,
    article,
    called,
    phase,
    referents,
    terminals,
)

Reading = tuple[str, object, object]  # (verb, first object, second object), resolved
_FREE = ("look around", "inventory", "task")  # these take no time
_LIQUID = (
    "You can't pick up a liquid directly. Try pouring it from one container to another, or dunking"
    " empty containers into containers filled with the liquid."
)
_NO_WAY = "It's not clear how to get there from here."


class Lab(Physics):
    """A working copy that resolves names, plays commands and describes their effects."""

    # -- looking up ----------------------------------------------------------------------------
    def visible(self) -> list[int]:
        """What can be named: the room, what is in it and not in something closed, the inventory."""
        things, here = self.things, self.here
        known: dict[int, bool] = {here: True, NOWHERE: False, -1: False, AGENT: True}
        for room in range(1, len(ROOMS) + 1):
            known.setdefault(room, False)

        def reachable(index: int) -> bool:
            if index not in known:
                place = things[index].place
                known[index] = (
                    place >= 0
                    and reachable(place)
                    and (things[place].flag or not KINDS[things[place].kind].openable)
                )
            return known[index]

        return [i for i in range(len(things)) if reachable(i)]

    def shown(self, index: int) -> str:
        return called(self.world, self.things[index])

    def _matches(self, text: str, among: Sequence[int]) -> list[int]:
        full, short = [], []
        for index in among:
            thing = self.things[index]
            names = referents(thing.name, called(self.world, thing), thing.kind)
            if text and text in names:
                (full if names.index(text) < names.index("") else short).append(index)
        return full or short

    def resolve(self, text: str, among: Sequence[int] | None = None) -> list[int]:
        """The visible things that a text can mean: name, short name, or `name in holder`."""
        among = self.visible() if among is None else among
        found = self._matches(text, among)
        base, separator, holder = text.rpartition(" in ")
        if found or not separator:
            return found
        holders = [AGENT] if holder == "inventory" else self._matches(holder, among)
        return [i for i in self._matches(base, among) if self.things[i].place in holders]

    def resolve_terminal(self, text: str, among: Sequence[int]) -> list[Terminal]:
        """`battery anode` or `anode in battery`."""
        found = []
        for name in ("anode", "cathode", "terminal 1", "terminal 2"):
            rest = ""
            if text.endswith(f" {name}"):
                rest = text[: -len(name) - 1]
            elif text.startswith((f"{name} in ", f"{name} on ")):
                rest = text[len(name) + 4 :]
            if rest:
                found += [
                    (index, name)
                    for index in self.resolve(rest, among)
                    if name in terminals(self.things[index].kind)
                ]
        return found

    def reference(self, index: int, among: Sequence[int] | None = None) -> str:
        """The shortest text that means this thing alone; "" if there is none."""
        among = self.visible() if among is None else among
        name = self.shown(index).lower()
        if self.resolve(name, among) == [index]:
            return name
        holder = self.things[index].place
        text = f"{name} in {'inventory' if holder == AGENT else self.shown(holder).lower()}"
        return text if self.resolve(text, among) == [index] else ""

    def described_place(self, index: int) -> str:
        """`metal pot (in inventory, in agent, in kitchen)`, for menus."""
        chain, place = [], self.things[index].place
        if place == AGENT:
            chain.append("inventory")
        while place >= 0:
            chain.append(self.things[place].name)
            place = self.things[place].place
        return f"{self.shown(index)} ({', '.join(f'in {name}' for name in chain)})"

    # -- wording -------------------------------------------------------------------------------
    def _listed(self, index: int) -> str:
        return ", ".join(self.describe(i) for i in self._sorted(index)) or "nothing"

    def _sorted(self, index: int) -> list[int]:
        return sorted(self.inside(index), key=lambda i: (self.shown(i), i))

    def describe(self, index: int) -> str:
        """The text of a thing and its contents in a listing."""
        thing = self.things[index]
        name, kind = self.shown(index), thing.kind
        if kind == "agent":
            return "the agent"
        if kind == "substance" and not name.startswith(("solid", "liquid", "gaseous")):
            return f"a substance called {name}"
        if kind in ("paint", "product", "soil") or (kind == "substance" and " unknown " in name):
            return name
        if kind == "substance":
            return f"a substance called {name}"
        if kind in ("container", "pot", "fountain"):
            return f"{article(name)} (containing {self._listed(index)})"
        if kind == "surface":
            return f"{article(name)}. On the {name} is: {self._listed(index)}."
        if kind == "cabinet":
            text = f"{article(name)}. The {name} door is {'open' if thing.flag else 'closed'}. "
            return f"{text}In the {name} is: {self._listed(index)}." if thing.flag else text
        if kind == "hive":
            return f"{article(name)}. The {name} door is {'open' if thing.flag else 'closed'}. "
        if kind in ("stove", "basin"):
            where = "On" if kind == "stove" else "In"
            state = f"turned {'on' if thing.flag else 'off'}"
            return (
                f"{article(name)}, which is {state}. {where} the {name} is: {self._listed(index)}."
            )
        if kind == "thermometer":
            reading = f"a temperature of {ROOM_TEMPERATURE:.0f} degrees celsius"
            return f"{article(name)}, currently reading {reading}"
        if kind == "bulb":
            return f"{article(name)}, which is {'on' if index in self.lit() else 'off'}"
        if kind == "plane" and self.inside(index):
            blocks = "".join(
                f"{article(self.things[i].name)} approximately {self.things[i].clock}% down the plane"
                for i in self.inside(index)
            )
            return f"{article(name)}, with: {blocks}"
        if kind == "recipe":
            return f"a {name}"
        if kind == "plant" and self.inside(index):
            return f"{article(name)}. On the {thing.name} you see: {self._listed(index)}."
        return article(name)

    def look_around(self) -> str:
        room = self.things[self.here].name
        first = (
            "This outside location is called the outside. Here you see: "
            if room == "outside"
            else f"This room is called the {room}. In it, you see: "
        )
        seen = sorted(
            (i for i in self.inside(self.here) if i != AGENT), key=lambda i: (self.shown(i), i)
        )
        lines = [first, "\tthe agent", "\ta substance called air"]
        lines += [f"\t{self.describe(i)}" for i in seen]
        lines.append("You also see:")
        lines += [f"\t{self._door(other)}" for other in self.neighbours()]
        return "\n".join(lines)

    def neighbours(self) -> list[str]:
        room = self.things[self.here].name
        return sorted(b if a == room else a for a, b in DOORS if room in (a, b))

    def _pair(self, other: str) -> tuple[str, str]:
        room = self.things[self.here].name
        return (room, other) if (room, other) in DOORS else (other, room)

    def _door(self, other: str) -> str:
        state = "closed" if self._pair(other) in self.closed else "open"
        return f"A door to the {other} (that is {state})"

    # -- commands ------------------------------------------------------------------------------
    def play(self, reading: Reading) -> str:
        """Plays one reading, lets its time pass, and returns the feedback."""
        verb, first, second = reading
        if verb == "wait":
            self.tick(10)
            return "You decide to wait for 10 iterations."
        text = getattr(self, f"_{verb.replace(' ', '_')}")(first, second)
        if verb not in _FREE:
            self.tick(1)
        return text

    def _wait1(self, _first: object, _second: object) -> str:
        return "You decide to wait for 1 iterations."

    def _look_around(self, _first: object, _second: object) -> str:
        return self.look_around()

    def _task(self, _first: object, _second: object) -> str:
        return f"Task description:\n{self.world.description}"

    def _inventory(self, _first: object, _second: object) -> str:
        lines = [f"\t{self.describe(i)}" for i in self._sorted(AGENT)] or ["\tnothing"]
        return "\n".join(["In your inventory, you see:", *lines])

    def _go_to(self, room: int, _second: object) -> str:
        name = self.things[room].name
        if name not in self.neighbours():
            return _NO_WAY
        if self._pair(name) in self.closed:
            return "The door is not open."
        self.change(AGENT, place=room)
        return f"You move to the {name}."

    def _teleport_to(self, room: int, _second: object) -> str:
        self.change(AGENT, place=room)
        return f"You teleport to the {self.things[room].name}."

    def _open(self, index: int | str, _second: object) -> str:
        return self._turn(index, True, "open")

    def _close(self, index: int | str, _second: object) -> str:
        return self._turn(index, False, "closed")

    def _turn(self, index: int | str, flag: bool, word: str) -> str:
        if isinstance(index, str):  # the room behind a door
            pair = self._pair(index)
            if (pair not in self.closed) == flag:
                return f"The door is already {word}."
            self.closed = self.closed - {pair} if flag else self.closed | {pair}
            return f"The door is now {word}."
        thing = self.things[index]
        if not KINDS[thing.kind].openable:
            return f"The {thing.name} is not {'openable' if flag else 'closeable'}."
        if thing.flag == flag:
            return f"The {thing.name} is already {word}."
        self.change(index, flag=flag)
        return f"The {thing.name} is now {word}."

    def _activate(self, index: int, _second: object) -> str:
        return self._switch(index, True, "activated")

    def _deactivate(self, index: int, _second: object) -> str:
        return self._switch(index, False, "deactivated")

    def _switch(self, index: int, flag: bool, word: str) -> str:
        thing = self.things[index]
        if not KINDS[thing.kind].device:
            return f"The {thing.name} is not something that can be {word}."
        if thing.flag == flag:
            return f"The {thing.name} is already {word}."
        self.change(index, flag=flag)
        return f"The {thing.name} is now {word}."

    def _look_at(self, index: int | str, _second: object) -> str:
        if isinstance(index, str):  # the room behind a door
            return self._door(index)
        self.events.add(("looked", index))
        return self.look_around() if index == self.here else self.describe(index)

    def _look_in(self, index: int, _second: object) -> str:
        thing = self.things[index]
        if not KINDS[thing.kind].holds:
            return "It's not clear how to look inside of that."
        if KINDS[thing.kind].openable and not thing.flag:
            return f"The {thing.name} isn't open, so you can't see inside."
        lines = [f"\t{self.describe(i)}" for i in self._sorted(index)] or ["\tnothing"]
        return "\n".join([f"Inside the {thing.name} is: ", *lines])

    def _read(self, index: int, _second: object) -> str:
        if self.things[index].kind != "recipe":
            return "It's not clear how to read that."
        self.events.add(("read", index))
        return f"The recipe reads:\n{self.world.recipe}"

    def _eat(self, index: int, _second: object) -> str:
        thing = self.things[index]
        if thing.name not in ("red apple", "banana", "orange"):
            return f"The {thing.name} is not edible."
        self.change(index, place=NOWHERE)
        return f"The {thing.name} was delicious."

    def _focus_on(self, index: int, _second: object) -> str:
        self.focus = index
        self.events.add(("focus", index))
        return f"You focus on the {self.shown(index)}."

    def _pick_up(self, index: int, _second: object) -> str:
        return self._moved(index, AGENT)

    def _put_down(self, index: int, _second: object) -> str:
        return self._moved(index, self.here)

    def _move(self, index: int, target: int) -> str:
        return self._moved(index, target)

    def _moved(self, index: int, target: int) -> str:
        """Moves one thing; returns the feedback, which may say why it cannot be moved."""
        thing, goal = self.things[index], self.things[target]
        name = thing.name
        place = "inventory" if target == AGENT else goal.name
        if not KINDS[thing.kind].moveable or (thing.kind == "seed" and thing.stage):
            return f"The {name} is not moveable."
        if thing.kind == "substance" and phase(self.world, thing) != "solid":
            if phase(self.world, thing) == "gaseous":
                return "You can't pick up a gas directly."
            return _LIQUID
        if thing.kind in LIQUIDS:
            return _LIQUID
        refusal = self._no_room(index, target)
        if refusal:
            return refusal
        loose = self.loosen(index)
        self.change(index, place=target, clock=0 if goal.kind == "plane" else thing.clock)
        return f"{loose}You move the {name} to the {place}."

    def _no_room(self, index: int, target: int) -> str:
        """Why the thing cannot be put there; "" if it can."""
        goal, place = self.things[target], target
        while place >= 0:
            if place == index:
                return "You can't move something into itself."
            place = self.things[place].place
        if target == AGENT:
            return ""
        if not KINDS[goal.kind].holds or goal.kind == "plant":
            return "That can't be moved there, because it's not a container."
        if KINDS[goal.kind].openable and not goal.flag:
            return f"That can't be moved there, because the {goal.name} isn't open."
        if goal.kind == "plane" and self.things[index].kind != "block":
            return "That can't be moved there, because it's not a container."
        return ""

    def _pour(self, index: int, target: int) -> str:
        """Empties a container, given by itself or by one of the things in it."""
        thing, goal = self.things[index], self.things[target]
        inner = thing.kind in ("substance", *LIQUIDS)
        holder = thing.place if inner else index
        if KINDS[self.things[holder].kind] is not KINDS["container"]:
            if inner:
                held = "inventory" if holder == AGENT else self.things[holder].name
                return f"The {held} the {thing.name} is in is not movable."
            return f"The {thing.name} is not a container."
        refusal = self._no_room(holder, target)
        if refusal:
            return refusal
        for content in self.inside(holder):
            drains = goal.kind in ("basin", "room", "surface")
            liquid = self.things[content].kind in LIQUIDS or self.is_liquid(content)
            self.change(content, place=NOWHERE if drains and liquid else target)
        holding = self.things[holder].name
        return f"You pour the contents of the {holding} into the {goal.name}."

    def _dunk(self, index: int, target: int) -> str:
        thing, goal = self.things[index], self.things[target]
        if thing.kind != "container":
            return f"The {thing.name} is not a container."
        liquids = [i for i in self.inside(target) if self.is_liquid(i)]
        if not liquids or index == target:
            return f"There is no liquid in the {goal.name}."
        if goal.kind == "fountain":
            self.add_water(index)
        else:
            self.change(liquids[0], place=index)
        return f"You fill the {thing.name} with {self.things[liquids[0]].name}."

    def _use(self, tool: int, target: int) -> str:
        if self.things[tool].kind != "thermometer":
            return f"I'm not sure how to use the {self.things[tool].name}."
        temperature = self.temperature(target)
        if temperature is None:
            return "That thing doesn't appear to have a temperature that the thermometer can read."
        self.events.add(("measured", target))
        for index in self.inside(target):
            self.events.add(("measured", index))
        return f"the thermometer measures a temperature of {temperature:.0f} degrees celsius"

    def _mix(self, index: int, _second: object) -> str:
        name = self.things[index].name
        contents = self.inside(index)
        if len(contents) == 1:
            return f"There is only one thing ({self.shown(contents[0])})"
        names = frozenset(self.things[i].name for i in contents)
        product = RECIPES.get(names) or PAINTS.get(names)
        usual = all(self.things[i].kind == "paint" or self.mixable(i) for i in contents)
        if product is None or not usual:
            return f"Mixing the contents of the {name} does not appear to produce anything new."
        for content in contents:
            self.change(content, place=NOWHERE)
        kind = "paint" if names in PAINTS else "product"
        self.things.append(Thing(product, kind, index))
        parts = sorted(names)
        if kind == "paint":
            first, second = (part.removesuffix(" paint") for part in parts)
            return f"{first.capitalize()} and {second} paint mix to produce {product}."
        return f"{parts[0].capitalize()} and {parts[1]} mix to produce {product}."

    # -- circuits ------------------------------------------------------------------------------
    def _connect(self, one: Terminal | int, other: Terminal | int) -> str:
        if isinstance(one, int) or isinstance(other, int):
            return (
                "Connections must specify specific points of contact on polarized electrical"
                " components (e.g. anode, cathode)"
            )
        for index, name in (one, other):
            if (index, name) in self.links:
                return (
                    f"{name} on {self.things[index].name} is already connected, and must be"
                    " disconnected before it can be connected to something else"
                )
        if one[0] == other[0]:
            return "You can't connect something to itself."
        self.links[one], self.links[other] = other, one
        return (
            f"{one[1]} on {self.things[one[0]].name} is now connected to"
            f" {other[1]} on {self.things[other[0]].name}"
        )

    def _disconnect(self, index: int, _second: object) -> str:
        self.loosen(index)
        return f"{self.things[index].name} has been disconnected"
