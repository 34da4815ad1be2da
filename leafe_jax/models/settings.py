"""Settings of the mesh and of adapters; no jax."""

from __future__ import annotations

import dataclasses

from leafe_jax.errors import UserError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the training mesh.

    Attributes:
      data: copies of the weights; each has its own rows.
      fsdp: devices that divide a copy's weights, and its rows.
      tensor: devices that divide each matrix; must divide the model's heads.
        Of one of the three -1 takes the devices that are left.

    Raises:
      UserError: a size is out of range.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise UserError(f"train.mesh.{name} = {size}: must be at least 1, or -1")
        if list(sizes.values()).count(-1) > 1:
            text = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            raise UserError(f"train.mesh: {text}: only one of them can be -1")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters trained in place of the weights (arXiv 2106.09685).

    Attributes:
      rank: larger adapters learn more and cost more; 0 trains the weights.
      alpha: scale of the adapters, divided by the rank.
      targets: projections that get one, of TARGETS.

    Raises:
      UserError: a value is out of range.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank == 0:
            return
        if self.rank < 0 or not self.alpha > 0:
            raise UserError(
                f"train.lora.rank = {self.rank}, train.lora.alpha = {self.alpha}: must be >= 0"
                " and > 0"
            )
        if not self.targets or any(name not in TARGETS for name in self.targets):
            raise UserError(
                f"train.lora.targets = {tuple(self.targets)}: must be some of {', '.join(TARGETS)}"
            )
