"""Settings of a training run; no jax, so that a config can be checked without it."""

from __future__ import annotations

import dataclasses
import math

from leafe_jax.errors import UserError
from leafe_jax.models.settings import LoraConfig, MeshConfig

SCHEDULES = ("constant", "linear", "cosine")
REMAT = ("none", "dots", "full")
DTYPES = ("float32", "bfloat16")

_AT_LEAST_ONE = (
    "seq_len", "batch_size", "accumulation", "num_epochs", "loss_chunk", "checkpoint_every",
    "log_every", "max_nonfinite",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
      seq_len: tokens of a packed row.
      batch_size: rows of an optimizer step; with batch_examples, the most rows that it may take.
      batch_examples: examples of an optimizer step (paper: 128), packed into as few rows as they fit in;
        0 takes as many as the rows of batch_size hold.
      accumulation: parts that a batch is computed in, one after the other; more of them take less memory
        and more time.
      num_epochs: passes over the examples (paper: 2 to 3).
      learning_rate: peak, after the warm-up; the default is the embedded model's (paper: 1e-6 at 7B and
        above).
      schedule: after the warm-up: constant, linear or cosine (both to zero).
      warmup_steps: steps in which the learning rate grows to its peak.
      weight_decay: decoupled, of matrices only.
      b1, b2, eps: of AdamW.
      clip_norm: largest norm of the whole gradient; inf does not clip.
      compute_dtype: of activations, float32 or bfloat16; master weights are always float32.
      attention: jnp, splash (TPU) or cudnn (GPU); auto takes the platform's own.
      loss_chunk: vocabulary entries whose logits exist at the same time; fewer take less memory.
      remat: activations computed again in the backward pass: none, dots (all but the results of
        projections) or full (all but each layer's input).
      scan_layers: compile one layer instead of all of them: for deep models.
      lora: adapters in place of the weights.
      checkpoint_every: steps between two checkpoints.
      log_every: steps between two lines of measurements.
      max_nonfinite: skipped steps in a row that end the run.
      notice_url: polled for a maintenance notice: any answer but NONE saves and exits; "" for none.
      mesh: devices along each axis.

    Raises:
      UserError: a value is out of range.
    """

    seq_len: int = 384
    batch_size: int = 8
    batch_examples: int = 0
    accumulation: int = 1
    num_epochs: int = 5
    learning_rate: float = 1e-3
    schedule: str = "linear"
    warmup_steps: int = 5
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    clip_norm: float = 1.0
    compute_dtype: str = "float32"
    attention: str = "auto"
    loss_chunk: int = 8192
    remat: str = "none"
    scan_layers: bool = False
    lora: LoraConfig = LoraConfig()
    checkpoint_every: int = 50
    log_every: int = 10
    max_nonfinite: int = 5
    notice_url: str = ""
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        for name, allowed in (
            ("remat", REMAT), ("compute_dtype", DTYPES), ("schedule", SCHEDULES),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"train.{name} = {getattr(self, name)!r}: must be one of {', '.join(allowed)}"
                )
        for names, least in ((_AT_LEAST_ONE, 1), (("warmup_steps", "batch_examples"), 0)):
            for name in names:
                if getattr(self, name) < least:
                    raise UserError(
                        f"train.{name} = {getattr(self, name)}: must be at least {least}"
                    )
        for name, fits, text in (
            ("learning_rate", 0 <= self.learning_rate < math.inf, "at least 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("b1", 0 <= self.b1 < 1, "at least 0 and below 1"),
            ("b2", 0 <= self.b2 < 1, "at least 0 and below 1"),
            ("eps", 0 < self.eps < math.inf, "above 0"),  # 0: 0 / 0 where a gradient is 0
        ):
            if not fits:
                raise UserError(f"train.{name} = {getattr(self, name)}: must be {text}")
        if not self.clip_norm > 0:
            raise UserError(
                f"train.clip_norm = {self.clip_norm}: must be above 0, which would scale every"
                " gradient to nothing; inf clips none"
            )
