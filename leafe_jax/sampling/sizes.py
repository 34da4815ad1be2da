"""How many slots and pages fit into a device's memory, and which would have fitted where they did not.

All bytes are of one device. What programs need beside weights and pool is an estimate from their shapes.
The memory that `sampler.memory_share` leaves free is for its error and for fragmentation.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.runtime import processes
from leafe_jax.runtime.memory import Shortage, free_bytes
from leafe_jax.sampling.programs import Program
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.sampling.shapes import Shapes

GIB = 2**30
HOST_SLOTS = 128  # where the device's memory is the host's, which other programs share
# Numbers of slots to choose from. More slots than the first take more memory for little more speed: a
# decode step is bound by arithmetic then. All but the small ones are multiples of shapes.MEMBERS.
_SLOTS = (256, 192, 128, 96, 64, 48, 32, 24, 16, 8, 4, 2, 1)
_TYPICAL = 2  # a conversation has 1 / _TYPICAL of max_len: it grows from its prompt to its end
_MOST = 16  # pages for this many times the slots, at full length; more would hold nothing that comes back
_LOGITS = 4  # float32 arrays [B, V] at the same time: logits, log-probabilities, noise, their sum
_OPTIONS = 4  # further ones with EngineConfig.options: sorted logits, penalties, masks
_LANES = {"tpu": 128}  # a platform pads the last axis of an array to a multiple of this
# Bytes of code per layer of a program: libtpu 0.0.51 makes 7 to 10 MB (docs/SCALING.md), and all programs
# stay loaded. A GPU's are small, and are not kept where arrays are.
_CODE = {"tpu": 10 * 2**20}
_MARGIN = 1.05  # an allocator cannot use its last bytes


@dataclasses.dataclass(frozen=True)
class Needs:
    """What an engine needs on each of its devices beside the model's weights.

    Attributes:
      config: the model.
      settings: sizes; num_slots and num_pages do not matter.
      itemsize: bytes of a number of weights and cache.
      tensor: devices that divide the model.
      platform: of the devices, as jax names it.
    """

    config: ModelConfig
    settings: EngineConfig
    itemsize: int
    tensor: int
    platform: str

    @property
    def in_place(self) -> bool:
        """True if pages are read in place; otherwise a call's contexts are gathered."""
        chosen = self.settings.attention
        return chosen == "paged" or (chosen == "auto" and self.platform == "tpu")

    @property
    def token(self) -> int:
        """Bytes of one token's keys and values."""
        c = self.config
        lanes = _LANES.get(self.platform, 1)
        width = -(-c.head_dim // lanes) * lanes
        return 2 * c.num_layers * c.num_kv_heads * width * self.itemsize // self.tensor

    @property
    def page(self) -> int:
        """Bytes of a page."""
        return self.token * self.settings.page_size

    def pages_for(self, tokens: int) -> int:
        """Pages that a conversation needs while it is computed; see Scheduler._refusal."""
        return -(-tokens // self.settings.page_size) + 1

    @property
    def least(self) -> int:
        """Pages without which a conversation of max_len would be refused."""
        return max(2, self.pages_for(self.settings.max_len))

    def _listed(self, slots: int) -> list[Program]:
        s = self.settings
        return Shapes(
            num_rows=slots, max_len=s.max_len, page_size=s.page_size, spare=0,
            prefill_chunk=s.prefill_chunk, turn_chunk=s.turn_chunk, burst=1, goes_on=True,
            gathered=not self.in_place, weight_positions=1.0, token_positions=1.0,
        ).listed()  # fmt: skip

    def code(self, slots: int) -> int:
        """Bytes of all programs' code, with this number of slots."""
        return _CODE.get(self.platform, 0) * self.config.num_layers * len(self._listed(slots))

    def programs(self, slots: int) -> int:
        """Bytes of the programs with this number of slots: all code, and what the largest needs."""
        return self.code(slots) + max(map(self._temporaries, self._listed(slots)))

    def _temporaries(self, program: Program) -> int:
        c, rows, size = self.config, program.rows, self.settings.page_size
        own, shared = program.pages * size, program.shared * size
        held = (rows * own + program.groups * shared) * self.token
        # float32 scores, and their exponentials in the dtype of the values. Pallas keeps both on the chip.
        heads = c.num_heads / self.tensor
        scores = rows * program.tokens * heads * (own + shared) * (4 + self.itemsize)
        if self.in_place and self.platform == "tpu":
            held, scores = 0, 0
        elif self.in_place:  # one layer is gathered at a time, then split into keys and values
            held = 2 * held // c.num_layers
        wide = (
            3 * c.intermediate_size + (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        ) / self.tensor
        found = held + scores + rows * program.tokens * (4 * c.hidden_size + wide) * self.itemsize
        if program.kind == "turn":
            arrays = _LOGITS + _OPTIONS * self.settings.options
            found += rows * c.vocab_size * 4 * arrays
        return math.ceil(found)

    def total(self, slots: int, pages: int) -> int:
        """Bytes of the pool, with its spare page, and of the programs."""
        return (pages + 1) * self.page + self.programs(slots)

    def fitting(
        self,
        room: float,
        slots: Sequence[int],
        *,
        least: int = 0,
        most: int = 0,
        typical: bool = True,
    ) -> tuple[int, int] | None:
        """The first of some numbers of slots for which `room` bytes are enough, and the pages for it.

        Args:
          room: bytes.
          slots: numbers to try.
          least: fewer pages are not taken; 0: those of a conversation of max_len.
          most: more pages are not taken; 0: `_MOST` times what the slots need at full length.
          typical: every slot must have pages for a conversation of typical length.
        """
        heads = self.config.num_kv_heads * self.config.head_dim // self.tensor
        each = self.pages_for(-(-self.settings.max_len // _TYPICAL))
        for number in slots:
            needed = max(least or self.least, number * each * typical)
            # XLA numbers the rows of all pages' keys with 32 bits.
            highest = min(most or _MOST * number * self.least, 2**31 // heads - 2)
            pages = min(int(room - self.programs(number)) // self.page - 1, highest)
            if pages >= needed:
                return number, pages
        return None


def needs_of(
    config: ModelConfig, params: Any, settings: EngineConfig, tensor: int, platform: str
) -> Needs:
    """What an engine with these weights, arrays or shapes, needs on each device."""
    return Needs(config, settings, jax.tree.leaves(params)[0].dtype.itemsize, tensor, platform)


def choose(needs: Needs, free: int) -> tuple[int, int]:
    """(num_slots, num_pages) for `free` bytes beside the weights: those given, and the most for a 0.

    Args:
      needs: of an engine; its settings say which of them are 0.
      free: bytes; a share of settings.memory_share of them is filled.

    Raises:
      UserError: there is no room for what is given, or for one conversation of max_len.
    """
    s, room = needs.settings, needs.settings.memory_share * free
    slots = [s.num_slots] if s.num_slots else _SLOTS
    # Slots that the user has asked for may wait for pages.
    found = needs.fitting(room, slots, least=s.num_pages, most=s.num_pages, typical=not s.num_slots)
    if found is None:
        given = "".join(
            f", {name} = {value}"
            for name, value in (("num_slots", s.num_slots), ("num_pages", s.num_pages))
            if value
        )
        needed = needs.total(slots[-1], s.num_pages or needs.least)
        raise UserError(
            f"sampler.memory_share = {s.memory_share}{given}: {_gib(room)} of the {_gib(free)} GiB that are"
            f" free beside the weights are not enough: sampler.max_len = {s.max_len} needs {_gib(needed)}"
            " GiB at least; raise sampler.tensor, or lower sampler.max_len, turn_chunk, prefill_chunk,"
            " num_slots or num_pages"
        )
    return found


def settled(needs: Needs, free: int | None) -> EngineConfig:
    """The settings of `needs` with a number for every 0.

    Args:
      needs: of an engine.
      free: bytes beside the weights; None where the device does not say, as on CPU: there the pool has
        room for all slots at full length.

    Raises:
      UserError: see `choose`.
    """
    settings = needs.settings
    if free is None:
        return dataclasses.replace(settings, num_slots=settings.num_slots or HOST_SLOTS)
    if settings.num_slots and settings.num_pages:
        return settings
    slots, pages = choose(needs, free)
    return dataclasses.replace(settings, num_slots=slots, num_pages=pages)


_chosen: dict[Needs, EngineConfig] = {}  # so that engines share the programs they have compiled


def settle(needs: Needs, devices: Sequence[Any], alone: bool = False) -> EngineConfig:
    """As `settled`, for what is free on devices that hold the weights already.

    All processes choose the same, for the device with the least; all call it, unless `alone`. Engines that
    differ in their weights only get the same numbers while these leave half of what memory_share does not
    take. Then they share compiled programs.

    Args:
      needs: of the engine.
      devices: of all its copies in this process.
      alone: only this process makes an engine.

    Raises:
      UserError: see `choose`.
    """
    if needs.platform == "cpu" or needs.settings.num_slots and needs.settings.num_pages:
        return settled(needs, None)
    gc.collect()  # an engine that nobody uses any more may hold its pool
    free = free_bytes(devices)
    if alone and processes.several():  # the others do not hear of the choice, so it is not kept
        return settled(needs, free)
    free = processes.together("sampler: memory", free, decide=_least)
    if free is None:
        return settled(needs, None)
    found = _chosen.get(needs)
    if found is not None:
        # Programs are loaded already, so their code is not free.
        needed = needs.total(found.num_slots, found.num_pages) - needs.code(found.num_slots)
        if needed > (1 + needs.settings.memory_share) / 2 * free:
            found = None
    if found is None:
        found = _chosen[needs] = settled(needs, free)
    logging.getLogger("leafe_jax").info(
        "sampler: %d pages of %d positions, %d slots, %s of %s GiB", found.num_pages, found.page_size,
        found.num_slots, _gib(needs.total(found.num_slots, found.num_pages)), _gib(free),
    )  # fmt: skip
    return found


def _least(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return min(known) if len(known) == len(values) else None


def explain(needs: Needs, error: BaseException, lack: Shortage | None) -> UserError:
    """What to change after an engine ran out of memory, in one line.

    Args:
      needs: of the engine; its settings have its numbers of slots and pages.
      error: what the runtime or the compiler said.
      lack: how much was missing, if known.
    """
    slots, pages = needs.settings.num_slots, needs.settings.pool_pages
    said = f"({' '.join(str(error).split())[:200]})"
    begin = f"sampler.num_pages = {pages}, num_slots = {slots}: a device is out of memory while sampling:"
    other = "raise sampler.tensor, or lower sampler.max_len, turn_chunk or prefill_chunk"
    if lack is None:
        return UserError(f"{begin} lower num_pages or num_slots, {other} {said}")
    room = needs.total(slots, pages) - _MARGIN * lack.bytes
    fewer = [slots, *(number for number in _SLOTS if number < slots)]
    # Rather fewer slots than slots that wait for pages.
    fits = needs.fitting(room, fewer, most=pages)
    if fits is None:
        return UserError(
            f"{begin} {_gib(lack.bytes)} GiB are missing, and one conversation of sampler.max_len ="
            f" {needs.settings.max_len} does not fit either: {other} {said}"
        )
    if fits[0] == slots:
        return UserError(
            f"sampler.num_pages = {pages}: a device is out of memory while sampling: it fits with"
            f" {fits[1]} {said}"
        )
    return UserError(f"{begin} it fits with num_slots = {fits[0]} and num_pages = {fits[1]} {said}")


def _gib(number: float) -> str:
    return f"{number / GIB:.3g}"
