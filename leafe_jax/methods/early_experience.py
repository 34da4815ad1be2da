"""Early Experience (arXiv 2510.08558): an expert's actions, and what other actions would have brought.

The expert's trajectory and the alternatives at its steps come from a search with the method
"alternatives" (methods/alternatives.py); `search.<name>.expert` says who the expert is. The paper's two
variants are weights here:

Implicit world modelling: L = -log p(s_i^j | s_i, a_i^j), then imitation. s_i^j is the environment's answer
to alternative j at step i. It is asked for in the next user turn, so the context is the trajectory's own.
Self-reflection: L = -log p(c_i^j, a_i | s_i), with imitation. c_i^j is the agent's reason why the expert's
a_i is better than alternative j. It becomes the thought before a_i.

`add_early_experience` of leafe_jax/run/presets.py sets both up as in the paper. LEAFE's authors ran world
modelling only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from envs.prompts import LINES, Prompts, PromptsConfig
from leafe_jax.agent.policy import Encoder
from leafe_jax.errors import UserError
from leafe_jax.methods.base import FineTuneConfig, FineTuned, Made, Run
from leafe_jax.methods.examples import action_mass, sequence
from leafe_jax.types import Example, Node, Tree, Turn

WORLD, REFLECTION, IMITATION = range(3)


@dataclasses.dataclass(frozen=True)
class EarlyExperienceConfig(FineTuneConfig):
    """Weights of the three losses; 0 leaves a loss out.

    Raises:
      UserError: a weight is negative, or all are 0.
    """

    world_weight: float = 1.0  # of -log p(s_i^j | s_i, a_i^j)
    reflection_weight: float = 0.0  # of -log p(c_i^j, a_i | s_i); needs a search with `explain`
    imitation_weight: float = 1.0  # of -log p(a_i | s_i)

    def __post_init__(self) -> None:
        weights = ("world_weight", "reflection_weight", "imitation_weight")
        for name in weights:
            if not getattr(self, name) >= 0:
                raise UserError(
                    f"early_experience.{name} = {getattr(self, name)!r}: must be at least 0"
                )
        if not any(getattr(self, name) for name in weights):
            raise UserError(f"early_experience: {', '.join(weights)} = 0: nothing to train on")


class EarlyExperience(FineTuned):
    """Early Experience: implicit world modelling, self-reflection and imitation, each with its weight.

    Attributes:
      encoder, prompts: of the run, set by `fit`; world modelling and reflections need them.
    """

    name = "early_experience"
    Config = EarlyExperienceConfig
    sources = ("world", "reflection", "imitation")
    labels = ("predicted observations", "reasoned actions", "imitated sequences")
    config: EarlyExperienceConfig
    encoder: Encoder | None = None
    prompts: Prompts | None = None

    @property
    def weights(self) -> tuple[float, float, float]:
        c = self.config
        return c.world_weight, c.reflection_weight, c.imitation_weight

    def check(self, prompts: PromptsConfig) -> None:
        if self.config.reflection_weight and prompts.style in LINES:
            raise UserError(
                f"{self.name}.reflection_weight = {self.config.reflection_weight}: must be 0 where"
                f" prompts.style = {prompts.style!r}: the whole reply is the action, so there is no"
                " place for a reason"
            )

    def fit(self, run: Run) -> bool:
        self.encoder, self.prompts = run.encoder(self.config.start), run.prompts
        return super().fit(run)

    def examples(self, trees: Iterable[Tree], seed: int) -> Made:
        """`Made.duplicates` counts alternatives that are the expert's action or another one's."""
        by_task: dict[str, list[Example]] = {}
        duplicates = 0
        for tree in trees:
            expert = expert_of(tree)
            if expert is None:
                continue
            turns, found = tree.path(expert), by_task.setdefault(tree.task_id, [])
            if self.config.imitation_weight:
                steps = {turn.step for turn in turns}
                found += sequence(turns, steps, tree.mode, self.config.normalisation, IMITATION)
            theirs = {turn.step: turn.action for turn in turns}
            seen = set(theirs.items())
            for node in _alternatives(tree, expert):
                turn = node.turns[0]
                if (turn.step, turn.action) in seen:
                    duplicates += 1
                    continue
                seen.add((turn.step, turn.action))
                found += self._compared(tree, node, theirs[turn.step])
        return Made([e for task in sorted(by_task) for e in by_task[task]], duplicates)

    def _compared(self, tree: Tree, node: Node, better: str) -> Iterator[Example]:
        """The examples of an alternative; `better` is the expert's action."""
        encoder, prompts, config = self.encoder, self.prompts, self.config
        if not (config.world_weight or config.reflection_weight):
            return
        if encoder is None or prompts is None:
            raise UserError(
                f"{self.name}: world_weight and reflection_weight must be 0 outside a run: their texts"
                " need the run's tokenizer and prompts"
            )
        turns = tree.path(node) if tree.mode == "dialogue" else node.turns
        if config.world_weight:
            before = _ids(turns, with_last=True)
            asked = encoder.turn(before, prompts.world())
            yield self._example([*before, *asked], encoder.reply(node.final_observation), WORLD)
        if config.reflection_weight:
            for record in node.reflections:
                if record.status == "explained" and record.experience is not None:
                    reply = prompts.format_reasoned(record.experience, better)
                    context = _ids(turns, with_last=False)
                    yield self._example(context, encoder.reply(reply), REFLECTION)

    def _example(self, context: list[int], reply: tuple[int, ...], source: int) -> Example:
        ids = [*context, *reply]
        mass = action_mass(len(ids), [(len(context), len(ids))], self.config.normalisation)
        return Example(np.asarray(ids, np.int32), mass, source)


def _ids(turns: list[Turn], with_last: bool) -> list[int]:
    """The conversation up to the last turn's prompt, and with that turn's action if `with_last`."""
    ids: list[int] = []
    for turn in turns:
        ids += turn.prompt_ids
        if with_last or turn is not turns[-1]:
            ids += turn.action_ids
    return ids


def expert_of(tree: Tree) -> Node | None:
    """The trajectory that is imitated: the expert's, or the agent's own first success without
    experience."""
    roots = [node for node in tree.nodes if node.parent is None and node.success]
    return next((n for n in roots if n.kind == "expert"), roots[0] if roots else None)


def _alternatives(tree: Tree, expert: Node) -> list[Node]:
    return [n for n in tree.nodes if n.kind == "alternative" and n.parent == expert.id and n.turns]
