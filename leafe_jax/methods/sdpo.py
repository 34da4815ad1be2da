"""SDPO (arXiv 2601.20802): the model is its own teacher, once it is told what came of its attempt.

The student's replies y are on-policy samples. The teacher is a running average of the same model, and its
prompt has feedback f: a successful attempt of the same group, or how the attempt itself ended. The loss is
the divergence of pi(. | x, y_<t) from the teacher's pi(. | x, f, y_<t), on the student's tokens.

Of LEAFE it is the neighbour without rollback: both take advice out of the prompt and into the weights. Here
the advice is f at the first step, and the target is a distribution on what was done without it.

The authors compare the 100 likeliest tokens. Here the divergence's gradient is estimated on the sampled
token alone (training/objectives.py, `distillation`), without bias and with more variance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from leafe_jax.methods.examples import sequence
from leafe_jax.methods.groups import Group, Played
from leafe_jax.methods.grpo import scaled
from leafe_jax.methods.on_policy import Lesson, OnPolicy, OnPolicyConfig, Scene
from leafe_jax.types import BEHAVIOUR, Example, Turn

if TYPE_CHECKING:
    from leafe_jax.training.objectives import Objective

FEEDBACK = ("peer", "outcome", "both")


@dataclasses.dataclass(frozen=True)
class SDPOConfig(OnPolicyConfig):
    """SDPO's settings; the defaults are the paper's.

    Raises:
      UserError: a value is out of range.
    """

    section: ClassVar[str] = "sdpo"

    # What the teacher is told: the actions of another episode of the group that reached the goal ("peer"),
    # how the episode itself ended ("outcome"), or "both". Episodes with no feedback are not trained on.
    feedback: str = "peer"
    alpha: float = 0.5  # 0.5: Jensen-Shannon divergence; 1: KL(student || teacher)
    teacher_rate: float = (
        0.05  # share of the newest weights in the teacher, after each optimizer step
    )
    ratio_clip: float = 2.0  # most of a token's importance ratio

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback not in FEEDBACK:
            raise self.error("feedback", f"must be one of {', '.join(FEEDBACK)}")
        for name in ("alpha", "teacher_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise self.error(name, "must be above 0 and at most 1")
        if not 1 <= self.ratio_clip < math.inf:
            raise self.error("ratio_clip", "must be at least 1")


class SDPO(OnPolicy):
    """Self-distillation from feedback."""

    name = "sdpo"
    Config = SDPOConfig
    config: SDPOConfig
    remedies = dict.fromkeys(
        ("entropy", "kl", "invalid", "length", "signal", "gap"),
        "lower train.learning_rate or teacher_rate",
    )

    @property
    def average(self) -> float:  # type: ignore[override]
        return self.config.teacher_rate

    def objective(self) -> Objective:
        from leafe_jax.training.objectives import distillation

        return distillation(1.0, self.config.ratio_clip, self.config.alpha)

    def lesson(self, groups: Sequence[Group], scene: Scene) -> Lesson:
        examples: list[Example] = []
        taught: list[Example] = []
        for group in groups:
            for episode in group.episodes:
                feedback = self.told(group, episode)
                if not (feedback and episode.turns):
                    continue
                told = told_turns(episode, feedback, scene)
                for own, other in zip(
                    *(_sequences(turns, scene) for turns in (episode.turns, told)), strict=True
                ):
                    if len(other.ids) <= scene.longest:
                        examples.append(own)
                        taught.append(other)
        total = float(sum(e.mass.sum() for e in examples))
        return Lesson(scaled(examples, total), taught)

    def told(self, group: Group, episode: Played) -> str:
        """The feedback on an episode; "" if there is none."""
        parts = []
        if self.config.feedback != "outcome":
            peers = [e for e in group.episodes if e.success and e is not episode]
            if peers:
                actions = "; ".join(turn.action for turn in peers[0].turns)
                parts.append(f"Another attempt reached the goal with these actions: {actions}.")
        if self.config.feedback != "peer":
            ended = "reached the goal" if episode.success else "did not reach the goal"
            parts.append(
                f"This attempt {ended} in {len(episode.turns)} steps. The last observation was:"
                f" {episode.final_observation}"
            )
        return " ".join(parts)


def told_turns(episode: Played, feedback: str, scene: Scene) -> list[Turn]:
    """The turns as they would have been sampled with the feedback in view from the first step on.

    In a dialogue it is in the first message; in window mode in every one.
    """
    turns, prompts, rollout = episode.turns, scene.prompts, scene.rollout
    told = [(1, feedback)]
    if rollout.mode == "dialogue":
        text = prompts.observation(1, turns[0].observation, told)
        first = dataclasses.replace(turns[0], prompt_ids=list(scene.first_turn(text)))
        return [first, *turns[1:]]
    found = []
    for number, (turn, actions) in enumerate(zip(turns, episode.shown_actions, strict=True)):
        shown = turns[max(0, number - rollout.window) : number]
        text = prompts.window(
            turns[0].observation, [(t.observation, t.action) for t in shown], turn.step,
            turn.observation, told, scene.env.goal(turns[0].observation), actions,
        )  # fmt: skip
        found.append(dataclasses.replace(turn, prompt_ids=list(scene.first_turn(text))))
    return found


def _sequences(turns: Sequence[Turn], scene: Scene) -> list[Example]:
    columns = {BEHAVIOUR: {turn.step: turn.logprobs for turn in turns}}
    steps = {turn.step for turn in turns}
    return sequence(
        turns, steps, scene.rollout.mode, "token", 0, with_experience=True, columns=columns
    )
