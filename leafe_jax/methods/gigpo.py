"""GiGPO (arXiv 2505.10978): GRPO, and a second advantage from steps that begin in the same state.

Episodes of a group often pass through equal states, the anchors. What followed from each is compared there,
which tells good steps from bad ones within one episode. The original compares observations as texts. Here
states are values, so an anchor is an equal state; texts can be compared instead.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Hashable
from typing import ClassVar

import numpy as np

from leafe_jax.methods.groups import Group, Played
from leafe_jax.methods.grpo import GRPO, GRPOConfig, normalised

ANCHORS = ("state", "text")


@dataclasses.dataclass(frozen=True)
class GiGPOConfig(GRPOConfig):
    """GRPO's settings, and those of the second advantage. verl-agent sets `advantage` to "std" for ALFWorld
    and to "mean" for WebShop and Sokoban.

    Raises:
      UserError: a value is out of range.
    """

    section: ClassVar[str] = "gigpo"

    step_weight: float = 1.0  # of the second advantage; 0 is GRPO
    discount: float = 0.95  # of later rewards, a step
    anchors: str = (
        "state"  # steps are compared if their states are equal, or their observations' "text"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchors not in ANCHORS:
            raise self.error("anchors", f"must be one of {', '.join(ANCHORS)}")
        if not 0 <= self.step_weight < math.inf:
            raise self.error("step_weight", "must be at least 0")
        if not 0 <= self.discount <= 1:
            raise self.error("discount", "must be 0 to 1")
        if self.advantage == "maxrl":
            raise self.error("advantage", "must be std or mean")


class GiGPO(GRPO):
    """GiGPO: A = A_episode + step_weight * A_step."""

    name = "gigpo"
    Config = GiGPOConfig
    config: GiGPOConfig

    def advantages(self, group: Group) -> list[np.ndarray]:
        of_episodes, of_steps = super().advantages(group), self.step_advantages(group)
        return [a + self.config.step_weight * b for a, b in zip(of_episodes, of_steps, strict=True)]

    def step_advantages(self, group: Group) -> list[np.ndarray]:
        """A_step: each step's discounted return, compared with those of the steps at the same anchor.

        A step that no other shares its anchor with has 0.
        """
        returns = [self.returns(episode) for episode in group.episodes]
        places: dict[Hashable, list[tuple[int, int]]] = collections.defaultdict(list)
        for number, episode in enumerate(group.episodes):
            for step, turn in enumerate(episode.turns):
                same = turn.observation if self.config.anchors == "text" else episode.anchors[step]
                places[same].append((number, step))
        found = [np.zeros(len(own)) for own in returns]
        for steps in places.values():
            own = np.array([returns[number][step] for number, step in steps])
            (compared,) = normalised([own], own, divide=self.config.advantage == "std")
            if len(steps) > 1:
                for (number, step), value in zip(steps, compared, strict=True):
                    found[number][step] = value
        return found

    def returns(self, episode: Played) -> np.ndarray:
        """Discounted return of each step, less the step's own penalty."""
        rewards = [turn.reward for turn in episode.turns]
        if self.config.reward == "success" and rewards:
            rewards = [0.0] * (len(rewards) - 1) + [float(episode.success)]
        found, later = np.zeros(len(rewards)), 0.0
        for step in reversed(range(len(rewards))):
            found[step] = later = rewards[step] + self.config.discount * later
        return found - self.penalties(episode)
