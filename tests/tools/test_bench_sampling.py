"""The benchmark does what it claims: same tokens as transformers, and each prefix computed once."""

import json

import drawn
import jax
import numpy as np
import pytest

from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.models.decoder import ModelConfig, abstract_params
from leafe_jax.tools import bench_sampling as bench
from leafe_jax.tools.bench_models import random_params
from leafe_jax.tools.known_models import shape_config
from leafe_jax.tools.workloads import Branch, Inputs, Leafe, Plain, Play, Ragged, Script, Turns

CONFIG = ModelConfig(
    model_type="qwen2", vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2,
    num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6,
    tie_word_embeddings=True, max_position_embeddings=1024,
)  # fmt: skip
SMALL = {
    "plain": Plain(4, 40, 6),
    "turns": Turns(4, 3, 7, 5),
    "branches": Branch(3, 50, 4, 9, 6),
    "ragged": Ragged(12, 4, 3, (20, 60), (2, 9), (2, 20)),
    "leafe": Leafe(2),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    params = drawn.params(CONFIG)
    # Larger weights than at initialisation, so that the greedy token is not a close call.
    params = jax.tree.map(lambda x: x * 8 if x.ndim == 2 else x, params)
    hf.save(directory, CONFIG, params)
    return str(directory)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Two recorded trees: a root with a reflection at its end, and a branch from its second step."""
    directory = tmp_path_factory.mktemp("trees")

    def turn(step, prompt, reply):
        return {"step": step, "prompt_ids": [10 + step] * prompt, "action_ids": [5] * reply}

    nodes = [
        {"parent": None, "branch_step": None, "turns": [turn(1, 9, 3), turn(2, 4, 2), turn(3, 4, 5)],
         "reflections": [{"step": 4, "prompt_ids": [90] * 6, "ids": [5] * 7}]},
        {"parent": 0, "branch_step": 2, "turns": [turn(2, 5, 4), turn(3, 3, 2)], "reflections": []},
    ]  # fmt: skip
    lines = [json.dumps({"nodes": nodes})] * 2
    (directory / "0000.jsonl").write_text("\n".join(lines) + "\n")
    return str(directory)


@pytest.mark.parametrize(
    "name",
    [n if n in ("leafe", "branches") else pytest.param(n, marks=pytest.mark.slow) for n in SMALL],
)
def test_every_workload_generates_what_transformers_generates(name, model, trees):
    w = SMALL[name]
    x = Inputs(w, CONFIG.vocab_size, trees)
    ours = bench.BenchEngine(model, "float32", w)
    theirs = bench.Transformers(model, "float32", w)
    got, expected = ours.run(x), theirs.run(x)
    assert got.dtype.kind == "i" and got.size > 20
    np.testing.assert_array_equal(got, expected)
    again = ours.run(x)
    np.testing.assert_array_equal(again, got)  # every run starts with an empty cache
    page = ours.sampler.tree.page_size
    if (
        name == "turns"
    ):  # every token once; the last sampled token of a turn is computed in the next turn
        assert ours.prefill_tokens == 4 * (3 * 7 + 2)
    if name == "branches":
        ideal = 3 * 50 + 12 * 9
        assert ideal <= ours.prefill_tokens <= ideal + 12 * page
    if name == "leafe":
        # Root 9 + 4 + 4, reflection 6, branch 5 + 3, each plus the token sampled last before it. The
        # second tree reuses the prompt of the first tree's first turn.
        assert ours.prefill_tokens < theirs.prefill_tokens / 2


def test_a_recorded_tree_by_hand():
    scripts = [
        Script([([1, 2], 2, False), ([3], 1, False), ([9], 2, True)]),
        Script([([4], 1, False)], parent=0, begin=2),
    ]
    play = Play(scripts)
    assert play.start() == [(0, [1, 2], 2)]
    assert play.reply(0, [50, 51]) == [(0, [1, 2, 50, 51, 3], 1)]
    assert play.reply(0, [52]) == [(0, [1, 2, 50, 51, 3, 52, 9], 2)]  # the reflection
    # The branch starts before the second turn, and the reflection is not in its context.
    assert play.reply(0, [60, 61]) == [(1, [1, 2, 50, 51, 4], 1)]
    assert play.reply(1, [70]) == []
    assert play.generated == 6


def test_the_ragged_workload_is_ragged_and_the_same_every_time():
    a, b = (Inputs(Ragged(), 2048) for _ in range(2))
    assert [s.turns for s in a.scripts] == [s.turns for s in b.scripts]
    assert len(a.scripts) == 128
    firsts = [len(s.turns[0][0]) for s in a.scripts]
    assert min(firsts) < 200 and max(firsts) > 800 and len(set(firsts)) > 100
    replies = [count for s in a.scripts for _, count, _ in s.turns]
    assert min(replies) == 4 and max(replies) == 64
    forks = [s.turns[0][0] for s in a.scripts]
    assert all(forks[i][:100] == forks[i % 32][:100] for i in range(128))


@pytest.mark.slow
def test_random_weights_need_no_checkpoint(capsys):
    w = Branch(2, 20, 2, 5, 4)
    config = shape_config("tiny")
    ours = bench.BenchEngine("random:tiny", "float32", w)
    x = Inputs(w, config.vocab_size)
    np.testing.assert_array_equal(ours.run(x), ours.run(x))
    with pytest.raises(UserError, match="--model=random:tiny: only --engine=leafe_jax"):
        bench.Transformers("random:tiny", "float32", w)
    assert bench.main(["--workload=plain", "--model=random:9b"]) == 2
    assert "shape '9b': must be one of tiny, small, 0.5b" in capsys.readouterr().err
    params = random_params(config, "bfloat16")
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, abstract_params(config))
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    layers = [params["layers"][i]["mlp"]["up_proj"]["kernel"] for i in "01"]
    assert not np.array_equal(*layers), "layers are drawn independently"
    for kernel in layers:
        np.testing.assert_allclose(np.std(np.float32(kernel)), 0.02, rtol=0.05)
    assert np.all(np.float32(params["final_norm"]["scale"]) == 1)


@pytest.mark.slow
def test_the_command(model, capsys):
    assert bench.main(["--workload=plain", f"--model={model}", "--repeats=1"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["generated_tokens"] == 2048 and record["prefilled_tokens"] == 32 * 256
    assert record["wall_s"] > 0 and record["peak_bytes"] > 1e7 and record["compile_s"] >= 0
    assert bench.main(["--workload=step", f"--model={model}", "--repeats=1"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["step_s"] > 0 and record["plain_step_s"] > 0
    for arguments, message in (
        (["--workload=leafe", "--trees=/nowhere"], "--trees=/nowhere: no *.jsonl there"),
        (["--workload=plain", "--engine=vllm"], "--engine=vllm"),
        (["--workload=plain", "--repeats=0"], "--repeats=0"),
    ):
        assert bench.main([*arguments, f"--model={model}"]) == 2
        assert message in capsys.readouterr().err
    assert bench.main(["--workload=plain", "--model=/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err
