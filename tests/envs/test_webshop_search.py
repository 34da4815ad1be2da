"""Search against Anserini itself (recorded) and against BM25 worked out by hand."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from envs.webshop.search import SearchIndex, analyze, stored_length

LUCENE = json.loads(Path(__file__).with_name("webshop_lucene.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("text,terms", LUCENE["analysis"], ids=range(len(LUCENE["analysis"])))
def test_analysis_is_lucenes(text, terms):
    assert analyze(text) == terms


def test_ranking_is_anserinis():
    """Same hits in the same order; documents have 0 to several hundred terms, some are equal."""
    ids, texts = zip(*LUCENE["documents"])
    index = SearchIndex(ids, lambda: texts)
    for query, hits in LUCENE["queries"]:
        assert [ids[n] for n in index.search(query)] == [asin for asin, _ in hits], query
    assert sum(len(hits) > 10 for _, hits in LUCENE["queries"]) > 30


def test_scores_by_hand():
    """N = 3, average length 2; "shirt" in two documents, once and twice."""
    texts = ["red shirt", "shirts shirt blue", "shoe"]
    index = SearchIndex(["b", "a", "c"], lambda: texts)
    assert index.search("Shirt's") == [1, 0]
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    tf = [1 / (1 + 0.9 * (0.6 + 0.4 * 2 / 2)), 2 / (2 + 0.9 * (0.6 + 0.4 * 3 / 2))]
    posting = slice(index._starts[index._terms["shirt"]], index._starts[index._terms["shirt"] + 1])
    saturation = index._saturation[posting]
    got = index._idf[index._terms["shirt"]] * (1 - 1 / (1 + saturation))
    np.testing.assert_allclose(got, [idf * tf[0], idf * tf[1]], rtol=1e-6)
    assert index.search("the of") == index.search("") == index.search("xyzzy") == []


def test_equal_scores_go_by_id_and_the_limit_holds():
    ids = [f"{n:03d}" for n in range(200)][::-1]
    index = SearchIndex(ids, lambda: ["green mug"] * 200)
    assert [ids[n] for n in index.search("mug")] == [f"{n:03d}" for n in range(50)]
    assert [ids[n] for n in index.search("green", limit=3)] == ["000", "001", "002"]


def test_lengths_are_kept_in_one_byte():
    """Lucene's SmallFloat.byte4ToInt(intToByte4(n)), from its documentation: 0-39 exact, then
    steps of 2 up to 56, of 4 up to 88, and so on."""
    lengths = np.array([0, 1, 23, 24, 39, 40, 41, 42, 55, 56, 59, 60, 87, 88, 95, 96, 1000])
    kept = [0, 1, 23, 24, 39, 40, 40, 42, 54, 56, 56, 60, 84, 88, 88, 96, 984]
    assert stored_length(lengths).tolist() == kept


def test_empty_index():
    assert SearchIndex([], lambda: []).search("anything") == []
    assert SearchIndex(["a"], lambda: [""]).search("anything") == []


def test_cache_is_used_and_a_broken_file_is_not(tmp_path, caplog):
    ids, texts = zip(*LUCENE["documents"])
    queries = [query for query, _ in LUCENE["queries"]]

    def answers():
        passes = []

        def read():
            passes.append(1)
            return texts

        index = SearchIndex(ids, read, tmp_path)
        return [index.search(query) for query in queries], len(passes)

    first, passes = answers()
    assert passes == 2  # the fingerprint, then the index
    (file,) = tmp_path.iterdir()
    assert answers() == (first, 1)
    file.write_bytes(file.read_bytes()[:1000])
    assert answers() == (first, 2)
    assert "broken" in caplog.text
    SearchIndex(ids, lambda: (*texts[:-1], "something else"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # other content, other file


def test_cache_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    index = SearchIndex(["a"], lambda: ["mug"], tmp_path / "file" / "below")
    assert index.search("mug") == [0]
    assert "not kept" in caplog.text


def test_environments_import_light():
    """`import envs` brings neither numpy nor the stemmer, and the shop no JAX."""
    root = str(Path(__file__).resolve().parents[2])
    code = (
        "import sys, envs; assert not {'numpy', 'nltk', 'rapidfuzz'} & set(sys.modules)\n"
        "import envs.webshop; assert not {'jax', 'spacy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_a_row_of_underscores_takes_no_longer_than_words():
    start = time.thread_time()
    assert analyze("_" * 200_000 + " mug " + "_" * 200_000 + "tea_" + "_-" * 100_000)[0] == "mug"
    assert time.thread_time() - start < 5
