"""Methods that train a model on its own rollouts, again and again: their settings, and what they decide.

The loop itself is leafe_jax/methods/loop.py. Here is no jax, so that a config can be checked without it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from envs.base import Environment, Task
from envs.prompts import Prompts
from leafe_jax.agent.policy import Policy
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.errors import UserError
from leafe_jax.methods import watch
from leafe_jax.methods.base import Agent, Method, Run
from leafe_jax.methods.groups import Group, play_groups
from leafe_jax.training.settings import TrainConfig
from leafe_jax.types import Example, Sampling

if TYPE_CHECKING:
    from leafe_jax.training.objectives import Objective

KEEP = ("last", "best")


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig:
    """The settings that all methods share which train on their own rollouts.

    Raises:
      UserError: a value is out of range.
    """

    section: ClassVar[str] = "on_policy"  # of the config, for messages

    start: str = "base"  # method whose model is trained
    split: str = "train"  # tasks that are played
    num_tasks: int = 0  # the split's first tasks; 0 takes all
    iterations: int = 100  # rounds of sampling and training
    episodes: int = 64  # of an iteration
    group_size: int = 8  # episodes of a task that are compared with each other
    # Environment steps of all rollouts, dropped groups included, for comparisons at an equal budget; 0: no
    # limit. The last iteration has as many groups as the rest pays for.
    max_env_steps: int = 0
    # The next iteration's rollouts are sampled while this one trains, with weights that are one iteration
    # older (one-step off-policy). Importance ratios stay exact.
    overlap: bool = False
    probe_every: int = 10  # iterations between two evaluations on held-out tasks; 0: none
    probe_split: str = "valid"  # their split; must not be the one that is evaluated at the end
    probe_tasks: int = 12  # the split's first tasks; 0 takes all
    probe_samples: int = 8  # episodes a task
    keep: str = (
        "last"  # the model that is left: the "last", or the "best" of those that were probed
    )
    # num_epochs: passes over an iteration's rollouts. batch_size: rows of an optimizer step, of which an
    # iteration has as many as it takes. checkpoint_every: iterations between two checkpoints.
    train: TrainConfig = TrainConfig(
        num_epochs=1, learning_rate=1e-4, schedule="constant", checkpoint_every=1
    )

    def __post_init__(self) -> None:
        for name, least in (
            ("num_tasks", 0), ("iterations", 1), ("episodes", 1), ("max_env_steps", 0),
            ("probe_every", 0), ("probe_tasks", 0), ("probe_samples", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise self.error(name, f"must be at least {least}")
        if self.group_size < 2:
            raise self.error("group_size", "must be at least 2: an episode is compared with others")
        if self.episodes % self.group_size:
            raise self.error("episodes", f"must be a multiple of group_size = {self.group_size}")
        if self.keep not in KEEP:
            raise self.error("keep", f"must be one of {', '.join(KEEP)}")
        if self.keep == "best" and not self.probe_every:
            raise self.error("keep", "needs a probe: probe_every must be at least 1")
        if self.train.schedule != "constant":
            raise UserError(
                f"{self.section}.train.schedule = {self.train.schedule!r}: must be constant: how many"
                " steps there will be is not known"
            )

    def error(self, name: str, allowed: str) -> UserError:
        """The complaint about a field."""
        return UserError(f"{self.section}.{name} = {getattr(self, name)!r}: {allowed}")


@dataclasses.dataclass(frozen=True)
class Scene:
    """How a method's rollouts are played and put into words.

    Attributes:
      env, prompts: what is played, and how.
      rollout: how turns are rendered and sampled.
      first_turn: first_turn(text) gives the ids of a conversation's first user turn.
      longest: most ids of an example.
    """

    env: Environment
    prompts: Prompts
    rollout: RolloutConfig
    first_turn: Callable[[str], Sequence[int]]
    longest: int


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What an iteration trains on.

    Attributes:
      examples: with masses that add up to 1, or less.
      taught: for an objective that reads `teacher_logprob`: what the teacher sees instead of each example.
        It ends differently from the example in nothing: the same trained tokens, in the same order.
    """

    examples: list[Example]
    taught: list[Example] = dataclasses.field(default_factory=list)


class OnPolicy(Method):
    """A method that trains a model on its own rollouts.

    Attributes:
      sources: names of the data sources, in the order of Example.source.
      max_rounds: of sampling an iteration, until enough groups are `wanted`.
      weight_cap: most of the column `sampler_weight`, for objectives that read it.
      average: rate of the running average of the weights, the teacher of objectives that have one.
      remedies: kind of a warning -> the fields that help; see watch.REMEDIES.
    """

    config: OnPolicyConfig
    sources: ClassVar[tuple[str, ...]] = ("rollouts",)
    max_rounds: int = 1
    weight_cap: float = 1.0
    average: float = 0.0
    remedies: Mapping[str, str] = watch.REMEDIES

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.config.start,)

    @abc.abstractmethod
    def objective(self) -> Objective:
        """What is minimised. The masses of a lesson add up to 1, so its denominator is 1."""

    @abc.abstractmethod
    def lesson(self, groups: Sequence[Group], scene: Scene) -> Lesson:
        """What is trained on, with the columns of the objective that no model has to compute.

        The masses of all that is counted add up to 1, also if examples without a gradient are left out.
        """

    def play(self, policy: Policy, scene: Scene, tasks: Sequence[Task]) -> list[Group]:
        """Plays a group of each task; several processes call it with tasks of their own."""
        return play_groups(
            policy, scene.env, scene.prompts, tasks, self.config.group_size, scene.rollout
        )  # fmt: skip

    def wanted(self, group: Group) -> bool:
        """False drops a group, and another one is sampled in its place."""
        return True

    def fit(self, run: Run) -> bool:
        return run.practise(self)

    def agent(self, run: Run) -> Agent:
        return Agent(run.trained_model(self), run.prompts)

    def refuse(self, num_tasks: int, sampling: Sampling, max_len: int, several: bool) -> None:
        """Refuses settings that do not go with the rest of a run.

        Args:
          num_tasks: that are trained on.
          sampling: how training rollouts are drawn.
          max_len: most tokens of a rollout's sequence.
          several: the run has several processes.

        Raises:
          UserError: names the field.
        """
        config, name = self.config, self.name
        if config.episodes // config.group_size > num_tasks:
            raise UserError(
                f"{name}.episodes = {config.episodes}: must be at most {num_tasks} tasks times"
                f" {name}.group_size = {config.group_size}"
            )
        if not sampling.unchanged:
            raise UserError(
                f"{name}: sampler.temperature must be 1, without top_k, top_p, min_p, penalty or bias: the"
                " ratio of what is trained to what was sampled would not be exact"
            )
        if config.train.seq_len < max_len - 1:
            raise UserError(
                f"{name}.train.seq_len = {config.train.seq_len}: must be at least {max_len - 1}, one less"
                " than sampler.max_len: a rollout may be that long"
            )
        if config.overlap and several:
            raise UserError(f"{name}.overlap = True: must be False with several processes")
