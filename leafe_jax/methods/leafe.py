"""Stage 2, the data: trees -> D_cf and D_reh (arXiv 2603.16843, Stage 2).

Counterfactual pair: the context is h_tau as it is rendered WITHOUT any e, the target a'_tau exactly
as it was sampled with e in view. Rehearsal: the (h_t, a_t) of successful trajectories. Ids are never
tokenised again; only sampled tokens carry loss. docs/METHOD.md lists what the paper leaves open.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from envs.base import stable_seed
from leafe_jax.errors import UserError
from leafe_jax.methods.base import FineTuneConfig, FineTuned, Made
from leafe_jax.methods.examples import sequence
from leafe_jax.types import Example, Node, Tree

COUNTERFACTUAL, REHEARSAL = range(2)
QUALIFY = ("success", "improve")
REHEARSE = ("all", "roots", "without_branch_step")


@dataclasses.dataclass(frozen=True)
class LeafeConfig(FineTuneConfig):
    """Which examples are made, and how they are weighted. Values from the paper are marked (paper).

    Raises:
      UserError: a value is out of range.
    """

    counterfactual_weight: float = 1.0  # weight of L_cf; 0 trains on L_reh only
    beta: float = 1.0  # weight of L_reh; 0 trains on L_cf only
    counterfactual_per_task: int = 3  # most pairs per task (paper: about 3); 0 keeps all
    # Branches that give a pair: "success" (a'_tau is a step of a successful trajectory), or "improve" (or
    # of one whose return beats that of the trajectory that was left, up to the step at which it was left).
    qualify: str = "success"
    changed_only: bool = True  # drop pairs whose action is the one that had been taken anyway
    # Successful trajectories to rehearse: "all" (paper: branched ones included), "roots" (those without
    # any branch), or "without_branch_step" (all, but no loss on an a'_tau that was sampled with e in view).
    rehearse: str = "all"
    rehearsal_share: float = 0.2  # share of them that is rehearsed (paper)
    # Rehearsed histories show e where the prompt of the turn showed it (open in the paper).
    rehearse_with_experience: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("qualify", QUALIFY), ("rehearse", REHEARSE)):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"leafe.{name} = {getattr(self, name)!r}: must be one of {', '.join(allowed)}"
                )
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

    def examples(self, trees: Iterable[Tree], seed: int) -> Made:
        return make_examples(trees, self.config, seed)


def _through(tree: Tree, node: Node) -> list[Node]:
    """The trajectories that contain a'_tau, the first turn of a branch: its own, and those that left it,
    directly or not, after that step. A child that leaves at tau or before takes back a'_tau itself."""
    tau, found, ids = node.branch_step, [node], {node.id}
    assert tau is not None, "a root is no branch"
    for later in tree.nodes[node.id + 1 :]:  # a parent stands before its children
        if later.parent in ids and later.branch_step is not None and later.branch_step > tau:
            found.append(later)
            ids.add(later.id)
    return found


def _best_return(tree: Tree, trajectories: Iterable[Node], last: float) -> float:
    """The most that one of the trajectories has brought up to the step `last`."""
    return max(sum(t.reward for t in tree.path(n) if t.step <= last) for n in trajectories)


def counterfactual_nodes(tree: Tree, config: LeafeConfig) -> list[Node]:
    """Branches of a tree that qualify for D_cf, in order of creation."""
    kept = []
    for node in tree.nodes:
        if node.parent is None or not node.turns:
            continue
        parent = tree.nodes[node.parent]
        trajectories = _through(tree, node)
        qualifies = any(n.success for n in trajectories)
        if config.qualify == "improve":
            # What comes later than its end, a trajectory that was left had no chance to bring.
            left = parent.stop == "branched"
            last = max(t.step for t in tree.path(parent)) if left else float("inf")
            qualifies = qualifies or _best_return(tree, trajectories, last) > parent.return_
        if not qualifies:
            continue
        replaced = next((t for t in tree.path(parent) if t.step == node.branch_step), None)
        if config.changed_only and replaced and replaced.action == node.turns[0].action:
            continue
        kept.append(node)
    return kept


def _pairs(tree: Tree, config: LeafeConfig, seed: int) -> tuple[list[Example], int]:
    """The counterfactual pairs of a tree, and the number of exact duplicates that were left out.

    A task's pairs are made before some of them are chosen: a duplicate must not use up one of the
    counterfactual_per_task places.
    """
    found: dict[tuple[bytes, bytes], Example] = {}
    made = 0
    for node in counterfactual_nodes(tree, config):
        tau = node.branch_step
        assert tau is not None, "a root is no branch"
        turns = [t for t in tree.path(node) if t.step <= tau]
        (pair,) = sequence(turns, {tau}, tree.mode, config.normalisation, COUNTERFACTUAL)
        made += 1
        # The mass tells where the context ends and the target begins.
        found.setdefault((pair.ids.tobytes(), pair.mass.tobytes()), pair)
    pairs, limit = list(found.values()), config.counterfactual_per_task
    if 0 < limit < len(pairs):
        rng = random.Random(stable_seed(seed, "counterfactual", tree.task_id))
        pairs = [pairs[i] for i in sorted(rng.sample(range(len(pairs)), limit))]
    return pairs, made - len(found)


def _rehearsed(tree: Tree, node: Node, config: LeafeConfig) -> list[Example]:
    """The training sequences of a successful trajectory; none if no step of it carries loss."""
    turns = tree.path(node)
    steps = {t.step for t in turns}
    if config.rehearse == "without_branch_step":
        first = [n.turns[0] for n in tree.nodes if n.parent is not None and n.turns]
        aided = [t for t in first if t.plain_prompt_ids is not None]
        steps -= {t.step for t in turns if any(t is a for a in aided)}
    if not steps:
        return []
    return sequence(
        turns, steps, tree.mode, config.normalisation, REHEARSAL,
        with_experience=config.rehearse_with_experience,
    )  # fmt: skip


def make_examples(trees: Iterable[Tree], config: LeafeConfig, seed: int) -> Made:
    """D_cf and D_reh of a set of trees.

    Args:
      trees: in any order; the result depends on their content only. Iterated twice.
      config: the rules.
      seed: of the choice among too many pairs and of the rehearsed share.

    Returns:
      Examples, the counterfactual ones first.
    """
    pairs: dict[str, list[Example]] = {}  # by task id
    duplicates = 0
    successes: list[tuple[str, int]] = []
    for tree in trees:
        if config.counterfactual_weight > 0:
            found, dropped = _pairs(tree, config, seed)
            pairs.setdefault(tree.task_id, []).extend(found)
            duplicates += dropped
        successes += [
            (tree.task_id, node.id)
            for node in tree.nodes
            if node.success and (node.parent is None or config.rehearse != "roots")
        ]
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
                rehearsed.setdefault(tree.task_id, []).extend(_rehearsed(tree, node, config))
    made = [e for part in (pairs, rehearsed) for task in sorted(part) for e in part[task]]
    return Made(made, duplicates)
