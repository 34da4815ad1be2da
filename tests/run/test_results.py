"""What results.json says of a search."""

import json
import types

from leafe_jax.run.report.table import search_sentence
from leafe_jax.run.results import _search_result
from leafe_jax.types import Node, ReflectionRecord, Tree, Turn


def reflection(status, tau=None, experience=None, cut=False):
    return ReflectionRecord(
        2, [1], [2], [-0.1], "r", status, tau=tau, experience=experience, cut=cut
    )


def test_experiences_that_are_cut_are_counted(tmp_path):
    """Whether they open a branch or not; a reply that is cut without an e is no cut experience."""
    turn = Turn(1, "o", [], [1], None, [2], [-0.1], "t", "a", True, 0.0)
    said = [
        reflection("branched", 1, "open", cut=True),
        reflection("out_of_range", 9, "open", cut=True),
        reflection("branched", 1, "open it"),
        reflection("no_mistake", cut=True),
        reflection("unparsable", cut=True),
    ]
    tree = Tree("e", "t", "f", 0, "dialogue", [Node(0, None, None, 0, "root", None, [turn])])
    tree.nodes[0].reflections = said
    (tmp_path / "0000.jsonl").write_text(json.dumps(tree.to_json()) + "\n")

    class Files(list):
        phase = types.SimpleNamespace(record={"seconds": 1.0})

    result = _search_result(Files([tmp_path / "0000.jsonl"]))
    assert result["experiences_cut"] == 2 and result["reflections"]["branched"] == 2
    assert "2 experiences cut" in search_sentence("tree", result)
