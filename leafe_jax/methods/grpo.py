"""GRPO on agents (arXiv 2402.03300), as verl-agent runs it, with the variants that came after it.

Several episodes of one task are a group. The advantage of a step is its episode's return, compared with the
group's; every token that was sampled in the step has it. docs/METHODS.md says which fields make Dr.GRPO,
DAPO, GSPO and MaxRL of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from leafe_jax.methods.examples import Columns, sequence
from leafe_jax.methods.groups import Group, Played
from leafe_jax.methods.on_policy import Lesson, OnPolicy, OnPolicyConfig, Scene
from leafe_jax.types import ADVANTAGE, BEHAVIOUR, Example, Turn

if TYPE_CHECKING:
    from leafe_jax.training.objectives import Objective

Part = tuple[Sequence[Turn], np.ndarray]  # the turns of a sequence, and the advantage of each

_EPSILON = 1e-6  # added to the standard deviation, as in verl
CHOICES = {
    "reward": ("return", "success"),
    "advantage": ("std", "mean", "maxrl"),
    "normalise_over": ("steps", "episodes"),
    "loss_mean": ("token", "sequence", "constant"),
    "reference": ("start", "none"),
}


@dataclasses.dataclass(frozen=True)
class GRPOConfig(OnPolicyConfig):
    """GRPO's settings; the defaults are verl-agent's.

    Raises:
      UserError: a value is out of range.
    """

    section: ClassVar[str] = "grpo"

    reward: str = (
        "return"  # what is compared: the sum of an episode's rewards, or its "success" (1 or 0)
    )
    # A = (r - mean) / std of the group ("std", GRPO), r - mean ("mean", Dr.GRPO, arXiv 2503.20783), or
    # (r - mean) / mean ("maxrl", MaxRL, arXiv 2602.02710, of successes).
    advantage: str = "std"
    # Mean and std are over all "steps" of a group (verl-agent: long episodes weigh more), or "episodes".
    normalise_over: str = "steps"
    invalid_penalty: float = (
        0.1  # taken from the reward of a step whose action was not valid (verl-agent)
    )
    # The loss is the mean over an iteration's tokens ("token": verl-agent, DAPO), over its replies of the
    # mean over their tokens ("sequence": GRPO's paper), or over its replies of their sum divided by
    # sampler.max_action_tokens ("constant": Dr.GRPO, which no length can bias).
    loss_mean: str = "token"
    clip_low: float = 0.2  # ratios count from 1 - clip_low ...
    clip_high: float = 0.2  # ... to 1 + clip_high (DAPO's clip-higher, arXiv 2503.14476: 0.28)
    dual_clip: float = 3.0  # most of the ratio where the advantage is negative (arXiv 1912.09729)
    kl_coefficient: float = (
        0.01  # weight of the KL divergence from the reference (k3); 0 leaves it out
    )
    reference: str = (
        "start"  # the model that training starts from; "none" holds no copy of it in memory
    )
    entropy_coefficient: float = 0.001  # weight of the entropy bonus; larger values explore longer
    # Groups whose episodes all have the same reward teach nothing: others are sampled in their place
    # (DAPO's dynamic sampling), in at most max_rounds rounds.
    drop_flat_groups: bool = False
    max_rounds: int = 4  # of sampling an iteration, with drop_flat_groups
    # One ratio for a reply, the geometric mean of its tokens' (GSPO, arXiv 2507.18071, with clips of 3e-4
    # and 4e-4).
    sequence_ratios: bool = False
    # Corrects for a sampler that computes other probabilities than the trainer: each token's loss is
    # weighted by trainer / sampler, at most this (truncated importance sampling; 2.0 is usual). 0: off.
    sampler_weight_cap: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise self.error(name, f"must be one of {', '.join(allowed)}")
        for name in ("invalid_penalty", "kl_coefficient", "entropy_coefficient", "clip_high"):
            if not 0 <= getattr(self, name) < math.inf:
                raise self.error(name, "must be at least 0")
        if not 0 <= self.clip_low < 1:
            raise self.error("clip_low", "must be at least 0 and below 1")
        if not 1 < self.dual_clip < math.inf:
            raise self.error("dual_clip", "must be above 1")
        if self.sampler_weight_cap and not 1 <= self.sampler_weight_cap < math.inf:
            raise self.error("sampler_weight_cap", "must be at least 1, or 0")
        if self.max_rounds < 1:
            raise self.error("max_rounds", "must be at least 1")
        if self.kl_coefficient and self.reference == "none":
            raise self.error("kl_coefficient", f"must be 0 where {self.section}.reference = 'none'")
        if self.advantage == "maxrl" and self.reward != "success":
            raise self.error("advantage", f"needs {self.section}.reward = 'success'")


class GRPO(OnPolicy):
    """GRPO and its variants."""

    name = "grpo"
    Config = GRPOConfig
    config: GRPOConfig

    @property
    def max_rounds(self) -> int:  # type: ignore[override]
        return self.config.max_rounds if self.config.drop_flat_groups else 1

    @property
    def weight_cap(self) -> float:  # type: ignore[override]
        return self.config.sampler_weight_cap

    def objective(self) -> Objective:
        from leafe_jax.training.objectives import grpo

        c = self.config
        return grpo(
            1.0, c.clip_low, c.clip_high, c.dual_clip, c.kl_coefficient, c.entropy_coefficient,
            c.sequence_ratios, c.sampler_weight_cap > 0,
        )  # fmt: skip

    def reward(self, episode: Played) -> float:
        """What the group's episodes are compared by."""
        return float(episode.success) if self.config.reward == "success" else episode.return_

    def wanted(self, group: Group) -> bool:
        flat = len({self.reward(episode) for episode in group.episodes}) == 1
        return not (flat and self.config.drop_flat_groups)

    def advantages(self, group: Group) -> list[np.ndarray]:
        """The advantage of each step, an array for each episode of a group."""
        rewards = np.array([self.reward(episode) for episode in group.episodes])
        lost = [self.penalties(episode) for episode in group.episodes]
        if self.config.advantage == "maxrl":
            mean = rewards.mean()
            own = (rewards - mean) / mean if mean else np.zeros_like(rewards)
            return [a - penalty for a, penalty in zip(own, lost, strict=True)]
        scores = [reward - penalty for reward, penalty in zip(rewards, lost, strict=True)]
        over = rewards if self.config.normalise_over == "episodes" else np.concatenate(scores)
        return normalised(scores, over, divide=self.config.advantage == "std")

    def penalties(self, episode: Played) -> np.ndarray:
        """What each step loses."""
        return self.config.invalid_penalty * np.array([not t.valid for t in episode.turns], float)

    def lesson(self, groups: Sequence[Group], scene: Scene) -> Lesson:
        return Lesson(self.policy_examples([p for g in groups for p in self.parts(g)], scene))

    def parts(self, group: Group) -> list[Part]:
        """What a group's sequences are made of."""
        both = zip(group.episodes, self.advantages(group), strict=True)
        return [(episode.turns, advantages) for episode, advantages in both]

    def policy_examples(self, parts: Sequence[Part], scene: Scene) -> list[Example]:
        """Training sequences, prompts as they were sampled from, with masses for `loss_mean`."""
        kind, replies = self.config.loss_mean, [turn for turns, _ in parts for turn in turns]
        total = sum(len(t.action_ids) for t in replies) if kind == "token" else len(replies)
        if kind == "constant":
            total *= scene.rollout.max_action_tokens
        made: list[Example] = []
        for turns, advantages in parts:
            if not turns:
                continue
            columns: Columns = {
                ADVANTAGE: {t.step: float(a) for t, a in zip(turns, advantages, strict=True)},
                BEHAVIOUR: {t.step: t.logprobs for t in turns},
            }
            made += sequence(
                turns, {t.step for t in turns}, scene.rollout.mode,
                "example" if kind == "sequence" else "token", 0, with_experience=True,
                columns=columns,
            )  # fmt: skip
        # Without KL and entropy there is no gradient where the advantage is 0. The mean still counts it.
        if not (self.config.kl_coefficient or self.config.entropy_coefficient):
            made = [e for e in made if e.columns[ADVANTAGE].any()]
        return scaled(made, total)


def scaled(examples: Sequence[Example], total: float) -> list[Example]:
    """The examples with their masses divided by `total`."""
    return [dataclasses.replace(e, mass=(e.mass / total).astype(np.float32)) for e in examples]


def normalised(scores: Sequence[np.ndarray], over: np.ndarray, divide: bool) -> list[np.ndarray]:
    """Scores minus the mean of `over` and, with `divide`, over its (unbiased) standard deviation."""
    if len(over) < 2 or over.min() == over.max():
        # Exactly zero, where rounding of the mean would leave a trace to be divided by epsilon.
        return [s - over[0] if len(over) else s for s in scores]
    scale = over.std(ddof=1) + _EPSILON if divide else 1.0
    return [(s - over.mean()) / scale for s in scores]
