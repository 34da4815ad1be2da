"""Rejection-sampling fine-tuning (RFT): SFT on all successful trajectories of a search.

The simple control beside LEAFE: the same trees, or independent samples of the same budget
(`config.search.<name>.method = "independent"`), and no corrections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from leafe_jax.methods.base import FineTuneConfig, FineTuned, Made
from leafe_jax.methods.examples import sequence
from leafe_jax.types import Example, Tree


@dataclasses.dataclass(frozen=True)
class RFTConfig(FineTuneConfig):
    """Nothing beyond what all fine-tuned methods have."""


class RejectionFineTuning(FineTuned):
    """RFT."""

    name = "rft"
    Config = RFTConfig
    sources = ("success",)
    labels = ("successful sequences",)
    weights = (1.0,)

    def examples(self, trees: Iterable[Tree], seed: int) -> Made:
        found: dict[str, list[Example]] = {}
        for tree in trees:
            for node in tree.nodes:
                if node.success:
                    turns = tree.path(node)
                    steps = {turn.step for turn in turns}
                    made = sequence(turns, steps, tree.mode, self.config.normalisation, source=0)
                    found.setdefault(tree.task_id, []).extend(made)
        return Made([example for task in sorted(found) for example in found[task]])
