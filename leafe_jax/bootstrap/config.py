"""The settings of the phase `bootstrap`, which makes a base model."""

from __future__ import annotations

import dataclasses
from typing import Any

from envs.prompts import PromptsConfig
from leafe_jax.errors import UserError
from leafe_jax.training.settings import TrainConfig


@dataclasses.dataclass(frozen=True)
class GameConfig:
    """One game of the corpus; environment and horizon as in the game's laptop config."""

    weight: float = 1.0  # share of the conversations, relative to the other games' weights
    horizon: int = 20  # environment steps per episode
    prompts: PromptsConfig = (
        PromptsConfig()
    )  # what the conversations look like, as the section `prompts`
    slip_rate: float = 0.02  # probability per step of a random wrong action; not trained on
    # Probability that a player avoids a habit without being told: one per habit.
    unaided_rates: dict[str, float] = dataclasses.field(default_factory=dict)
    # Weights of task families; 1 for families that are not listed.
    family_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # options of the environment


@dataclasses.dataclass(frozen=True)
class ShapeConfig:
    """The shape of a model that is made from scratch."""

    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10000.0


@dataclasses.dataclass(frozen=True)
class BootstrapConfig:
    """Corpus, tokenizer, model and gate.

    Raises:
      UserError: a value is not allowed.
    """

    from_scratch: bool = True  # False continues training from model.path, with its tokenizer
    games: dict[str, GameConfig] = dataclasses.field(default_factory=dict)
    num_conversations: int = 1000  # of all games together
    min_count: int = 5  # occurrences that a phrase needs to become a token
    # Relative frequency of conversations with up to 0, 1, ... pieces of experience.
    levels: tuple[float, ...] = (0.3, 0.28, 0.22, 0.12, 0.08)
    reflect_rate: float = 0.6  # share of failed conversations that end with a reflection
    tail: int = 6  # steps of a failed episode that may follow its first repeated action
    observation_mass: float = 0.2  # weight in the loss of tokens that are not replies
    rate_scale: float = 1.0  # multiplies all unaided rates (configs/unaided_sweep.py)
    dtype: str = (
        "bfloat16"  # in which the model is written: bfloat16, or float32 for twice the size
    )
    model: ShapeConfig = ShapeConfig()
    train: TrainConfig = TrainConfig()
    # Minimum rates per family, measured by the phase habits; a model below them is refused.
    gate: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float32"):
            raise UserError(f"bootstrap.dtype = {self.dtype!r}: must be bfloat16 or float32")
        if self.train.lora.rank:
            raise UserError(
                f"bootstrap.train.lora.rank = {self.train.lora.rank}: must be 0, because all weights are"
                " trained there"
            )
