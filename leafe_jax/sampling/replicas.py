"""Several copies of the model, each on its own devices, behind the interface of one engine.

A session is only ids, so any copy can serve any request; a request goes where most of its prompt is
cached, unless that copy has much more to do than another. The choice depends on what was asked in which
order, never on a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig, abstract_params
from leafe_jax.models.sharding import make_mesh, shardings_for
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.requests import EngineConfig, Generation, Request
from leafe_jax.sampling.sizes import needs_of, settle


class Replicas:
    """Engines side by side.

    Args:
      engines: at least one, all alike.
    """

    def __init__(self, engines: Sequence[Engine]):
        self.engines = list(engines)
        first = self.engines[0]
        self.start, self.fork, self.rewind = first.start, first.fork, first.rewind
        self.append, self.release = first.append, first.release
        self._next = 0
        self._tickets: dict[tuple[int, int], int] = {}  # (engine, its ticket) -> ours

    @property
    def num_slots(self) -> int:
        """Sequences computed together, on all copies."""
        return sum(engine.num_slots for engine in self.engines)

    def swap(self, params: Any) -> None:
        """Takes new weights on every copy; see Engine.swap."""
        for engine in self.engines:
            engine.refuse_busy()
        for engine in self.engines:
            engine.drop_weights(params)
        load_params = self.engines[0].copies_of(params)  # of all
        for engine in self.engines:
            engine.load_weights(load_params)

    def clear(self) -> None:
        """Forgets what is cached; see Engine.clear."""
        for engine in self.engines:
            engine.clear()

    def submit(self, request: Request) -> int:
        """Queues a request and returns its ticket."""
        ids = request.session.ids + list(request.new_ids)
        least = min(engine.num_queued for engine in self.engines)
        # Half a batch more than another has costs more than a prompt.
        limit = least + self.engines[0].num_slots // 2
        number = max(
            (n for n, engine in enumerate(self.engines) if engine.num_queued <= limit),
            key=lambda n: (
                self.engines[n].tree.match(ids[:-1]).length, -self.engines[n].num_queued, -n,
            ),
        )  # fmt: skip
        self._tickets[number, self.engines[number].submit(request)] = self._next
        self._next += 1
        return self._next - 1

    def launch(self) -> None:
        """Starts the next burst on every copy."""
        for engine in self.engines:
            engine.launch()

    def collect(self) -> list[tuple[int, Generation]]:
        """(ticket, result) of requests that have ended, at least one; [] when nothing is queued."""
        found: list[tuple[int, Generation]] = []
        while not found:
            # All decode at the same time; they are waited for one by one.
            self.launch()
            for number, engine in enumerate(self.engines):
                engine.land()
                found += [
                    (self._tickets.pop((number, ticket)), result)
                    for ticket, result in engine.take_done()
                ]
            if not self._tickets:
                break
        return found


def make_engines(
    config: ModelConfig,
    load_params: Callable[[Any], Any],
    settings: EngineConfig,
    *,
    copies: int,
    tensor: int,
    devices: Sequence[Any] | None = None,
    alone: bool = False,
) -> Engine | Replicas:
    """One engine, or several copies of the model on this process's devices.

    Args:
      config: the model.
      load_params: load_params(shardings) gives its weights, placed like this, for each copy.
      settings: sizes of each engine; for those that are 0 see sizes.settle. All processes make
        engines then. What is on the devices counts as used: a trainer beside it is to be restored first,
        and its steps need what memory_share leaves.
      copies: of the model; 0 makes as many as there are devices for.
      tensor: devices that divide one copy among them.
      devices: to use; this process's own by default.
      alone: only this process makes engines.

    Raises:
      UserError: more devices are asked for than there are, they do not divide the model, or their memory
        is too small.
    """
    devices = jax.local_devices() if devices is None else devices
    if tensor < 1 or copies < 0 or max(copies, 1) * tensor > len(devices):
        raise UserError(
            f"sampler.copies = {copies}, sampler.tensor = {tensor}: this process has"
            f" {len(devices)} devices"
        )
    copies = copies or len(devices) // tensor
    devices = devices[: copies * tensor]
    shapes = abstract_params(config)
    meshes: list[Mesh | None] = [None]
    if copies * tensor > 1:
        if config.num_kv_heads % tensor:
            raise UserError(
                f"sampler.tensor = {tensor}: does not divide the model's {config.num_kv_heads} key and"
                " value heads"
            )
        sizes = {"data": 1, "fsdp": 1, "tensor": tensor}
        parts = np.asarray(devices).reshape(copies, tensor)
        meshes = [make_mesh(sizes, own) for own in parts]

    def places(mesh: Mesh | None) -> Any:
        if mesh is None:
            return jax.tree.map(lambda _: SingleDeviceSharding(devices[0]), shapes)
        return shardings_for(shapes, mesh)

    # All of them first: the pools take what they leave.
    placed = jax.block_until_ready([load_params(places(mesh)) for mesh in meshes])
    needs = needs_of(config, placed[0], settings, tensor, devices[0].platform)
    settings = settle(needs, devices, alone)
    engines = [
        Engine(config, params, settings, mesh) for params, mesh in zip(placed, meshes, strict=True)
    ]
    return engines[0] if copies == 1 else Replicas(engines)
