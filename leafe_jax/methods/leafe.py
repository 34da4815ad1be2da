"""Stage 2, the data: trees -> D_cf and D_reh (arXiv 2603.16843, Stage 2).

Counterfactual pair: the context is h_tau as it is rendered WITHOUT any e, the target a'_tau exactly
as it was sampled with e in view. Rehearsal: the (h_t, a_t) of successful trajectories, branched ones
included, also without e. Ids are never tokenised again; only sampled tokens carry loss.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from envs.base import stable_seed
from leafe_jax.errors import UserError
from leafe_jax.methods.base import FineTuneConfig, FineTuned
from leafe_jax.methods.examples import sequence
from leafe_jax.types import Example, Node, Tree

COUNTERFACTUAL, REHEARSAL = range(2)


@dataclasses.dataclass(frozen=True)
class LeafeConfig(FineTuneConfig):
    """Which examples are made, and how they are weighted. Values from the paper are marked (paper).

    Raises:
      UserError: a value is out of range.
    """

    counterfactual_weight: float = 1.0  # weight of L_cf; 0 trains on L_reh only
    beta: float = 1.0  # weight of L_reh; 0 trains on L_cf only
    counterfactual_per_task: int = 3  # most pairs per task (paper: about 3); 0 keeps all
    # Branches that give a pair: "success" (the branch's subtree reaches success), or "improve" (or its
    # best return beats that of the trajectory it left, up to the step at which that one was left).
    qualify: str = "success"
    changed_only: bool = True  # drop pairs whose action is the one that had been taken anyway
    rehearsal_share: float = 0.2  # share of the successful trajectories that is rehearsed (paper)

    def __post_init__(self) -> None:
        if self.qualify not in ("success", "improve"):
            raise UserError(f"leafe.qualify = {self.qualify!r}: must be 'success' or 'improve'")
        if not 0.0 <= self.rehearsal_share <= 1.0:
            raise UserError(f"leafe.rehearsal_share = {self.rehearsal_share}: must be 0 to 1")
        for name in ("counterfactual_weight", "beta", "counterfactual_per_task"):
            if not getattr(self, name) >= 0:
                raise UserError(f"leafe.{name} = {getattr(self, name)!r}: must be at least 0")
        if self.counterfactual_weight == 0 and self.beta == 0:
            raise UserError(
                "leafe.beta = 0 and leafe.counterfactual_weight = 0: nothing to train on"
            )


class Leafe(FineTuned):
    """LEAFE's second stage: L = counterfactual_weight * L_cf + beta * L_reh."""

    name = "leafe"
    Config = LeafeConfig
    sources = ("counterfactual", "rehearsal")
    labels = ("counterfactual pairs", "rehearsed sequences")
    config: LeafeConfig

    @property
    def weights(self) -> tuple[float, float]:
        return self.config.counterfactual_weight, self.config.beta

    def examples(self, trees: Iterable[Tree], seed: int) -> list[Example]:
        return make_examples(trees, self.config, seed)


def _subtree(tree: Tree, node: Node) -> list[Node]:
    """`node` and all that was branched from it, directly or not."""
    found, ids = [node], {node.id}
    for later in tree.nodes[node.id + 1 :]:  # a parent stands before its children
        if later.parent in ids:
            found.append(later)
            ids.add(later.id)
    return found


def _best_return(tree: Tree, node: Node, last: float) -> float:
    """The most that a trajectory of a subtree has brought up to the step `last`."""
    subtree = _subtree(tree, node)
    return max(sum(t.reward for t in tree.path(n) if t.step <= last) for n in subtree)


def _succeeds(tree: Tree, node: Node) -> bool:
    return any(n.success for n in _subtree(tree, node))


def counterfactual_nodes(tree: Tree, config: LeafeConfig) -> list[Node]:
    """Branches of a tree that qualify for D_cf, in order of creation."""
    kept = []
    for node in tree.nodes:
        if node.parent is None or not node.turns:
            continue
        parent = tree.nodes[node.parent]
        qualifies = _succeeds(tree, node)
        if config.qualify == "improve":
            # What comes later than its end, a trajectory that was left had no chance to bring.
            left = parent.stop == "branched"
            last = max(t.step for t in tree.path(parent)) if left else float("inf")
            qualifies = qualifies or _best_return(tree, node, last) > parent.return_
        if not qualifies:
            continue
        replaced = next((t for t in tree.path(parent) if t.step == node.branch_step), None)
        if config.changed_only and replaced and replaced.action == node.turns[0].action:
            continue
        kept.append(node)
    return kept


def make_examples(trees: Iterable[Tree], config: LeafeConfig, seed: int) -> list[Example]:
    """D_cf and D_reh of a set of trees.

    Args:
      trees: in any order; the result depends on their content only. Iterated twice.
      config: the rules.
      seed: of the choice among too many pairs and of the rehearsed share.

    Returns:
      Examples, the counterfactual ones first.
    """
    pairs: dict[str, list[Example]] = {}  # by task id
    successes: list[tuple[str, int]] = []
    for tree in trees:
        nodes = counterfactual_nodes(tree, config)
        limit = config.counterfactual_per_task
        if 0 < limit < len(nodes):
            rng = random.Random(stable_seed(seed, "counterfactual", tree.task_id))
            nodes = sorted(rng.sample(nodes, limit), key=lambda node: node.id)
        for node in nodes:
            tau = node.branch_step
            assert tau is not None, "a root is no branch"
            pairs.setdefault(tree.task_id, []).extend(sequence(
                [t for t in tree.path(node) if t.step <= tau], {tau}, tree.mode,
                config.normalisation, COUNTERFACTUAL,
            ))  # fmt: skip
        successes += [(tree.task_id, node.id) for node in tree.nodes if node.success]
    # The paper rehearses a random share of the successful rollouts; at least one when there are any.
    number = round(config.rehearsal_share * len(successes))
    if config.rehearsal_share > 0 and successes:
        number = max(number, 1)
    rng = random.Random(stable_seed(seed, "rehearsal"))
    chosen = set(rng.sample(sorted(successes), number))
    rehearsed: dict[str, list[Example]] = {}
    for tree in trees if chosen else ():
        for node in tree.nodes:
            if (tree.task_id, node.id) in chosen:
                turns = tree.path(node)
                steps = {t.step for t in turns}
                rehearsed.setdefault(tree.task_id, []).extend(
                    sequence(turns, steps, tree.mode, config.normalisation, REHEARSAL)
                )
    return [e for part in (pairs, rehearsed) for task in sorted(part) for e in part[task]]
