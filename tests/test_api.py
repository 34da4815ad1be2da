"""The public API: it samples what a run samples, and leaves the process as it found it."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import leafe_jax
from leafe_jax.run import experiment, presets
from leafe_jax.run.weights import BASE_MODEL

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "phases": ("explore", "evaluate", "report"), "methods": ("base",), "env.horizon": 6,
    "sampler.temperature": 1.3,
    "search.tree.num_tasks": 2, "search.tree.block_size": 1, "search.tree.max_attempts": 3,
    "search.tree.reflect_every": 3, "evaluate.num_tasks": 2, "evaluate.block_size": 1,
    "evaluate.num_samples": 2,
}  # fmt: skip


def python(code: str, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A run of the command line's program, with the settings of `policy`."""
    config = presets.load_config("quickstart", "smoke")
    config.update_from_flattened_dict(TINY)
    directory = tmp_path_factory.mktemp("api") / "run"
    experiment.run(config, str(directory))
    return directory


@pytest.fixture(scope="module")
def policy() -> leafe_jax.LoadedPolicy:
    return leafe_jax.load_policy(config=leafe_jax.load_config("quickstart:smoke", TINY))


def by_task(trees) -> dict[str, str]:
    return {tree.task_id: json.dumps(tree.to_json()) for tree in trees}


def test_a_search_gives_the_trees_of_a_run(policy, workdir):
    trees = leafe_jax.explore(policy, policy.tasks("train", 2))
    assert by_task(trees) == by_task(leafe_jax.read_trees(workdir))
    assert [tree.task_id for tree in trees] == [task.task_id for task in policy.tasks("train", 2)]
    assert any(node.reflections for tree in trees for node in tree.nodes)
    other = leafe_jax.explore(policy, policy.tasks("train", 2), seed=1)
    assert by_task(other) != by_task(trees)


def test_an_evaluation_gives_the_numbers_of_a_run(policy, workdir):
    evaluation = leafe_jax.evaluate(policy, policy.tasks("test", 2))
    results = json.loads((workdir / "results.json").read_text())["methods"]["base"]
    files = sorted((workdir / "evaluate" / "base").glob("0*.json"))
    parts = [json.loads(file.read_text()) for file in files]
    assert [record for part in parts for record in part["tasks"]] == evaluation.tasks
    assert results["budget"] == dataclasses.asdict(evaluation.budget)
    assert results["families"] == leafe_jax.pass_at_k(evaluation)
    counts = {r["task_id"]: sum(r["successes"]) for r in evaluation.tasks}
    assert {task: entry["successes"] for task, entry in results["tasks"].items()} == counts
    same = leafe_jax.pass_at_k_difference(evaluation, evaluation)["all"]["pass_at_k"]["1"]
    assert same["value"] == 0 and same["low"] == pytest.approx(-same["high"]) and same["p"] == 1


def test_play_returns_what_evaluate_counts(policy):
    tasks = policy.tasks("test", 2)
    trees = leafe_jax.play(policy, tasks, 2)
    evaluation = leafe_jax.evaluate(policy, tasks, 2)
    spent = leafe_jax.Budget()
    for task, tree, record in zip(tasks, trees, evaluation.tasks, strict=True):
        assert (tree.task_id, tree.family) == (record["task_id"], record["family"])
        assert tree.task_id == task.task_id
        assert [node.success for node in tree.nodes] == record["successes"]
        assert [len(node.turns) for node in tree.nodes] == record["steps"]
        assert [node.return_ for node in tree.nodes] == record["returns"]
        assert [[t.observation, t.text] for t in tree.nodes[0].turns] == record["transcript"]
        assert tree.budget.env_steps == sum(record["steps"]) > 0
        leafe_jax.Tree.from_json(json.loads(json.dumps(tree.to_json())))  # a tree as any other
        spent.add(tree.budget)
    assert spent == evaluation.budget and spent.episodes == 4
    assert by_task(leafe_jax.play(policy, tasks[0], 2)) == by_task(trees[:1])  # blocks of one task


def test_turns_are_token_exact(policy):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(BASE_MODEL))
    (tree,) = leafe_jax.play(policy, policy.tasks("test", 1))
    messages, ids = [], []
    for turn in tree.nodes[0].turns:
        text = policy.prompts.observation(turn.step, turn.observation)
        messages.append({"role": "user", "content": text})
        ids += turn.prompt_ids
        whole = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert ids == whole
        assert tokenizer.decode(turn.action_ids, skip_special_tokens=True) == turn.text
        assert len(turn.logprobs) == len(turn.action_ids)
        # What was sampled stays; what the template would make of its text may be other tokens.
        if tokenizer(turn.text, add_special_tokens=False).input_ids != turn.action_ids[:-1]:
            break
        messages.append({"role": "assistant", "content": turn.text})
        ids += turn.action_ids
    assert len(messages) > 3


@pytest.fixture(scope="module")
def trained(policy, tmp_path_factory):
    """(trees, data, directory, handlers while training) of a training run on two tasks."""
    trees = leafe_jax.explore(policy, policy.tasks("train", 2))
    for tree in trees:  # declared, so that there are examples on every machine
        tree.nodes[-1].success = True
    settings = dataclasses.replace(policy.config.method["leafe"], rehearsal_share=1.0)
    data = leafe_jax.make_examples("leafe", trees, settings)
    directory = tmp_path_factory.mktemp("api") / "model_of_mine"
    seen = []

    def log(step, measurements):
        seen.append((step, measurements["loss"], signal.getsignal(signal.SIGINT)))

    config = leafe_jax.TrainConfig(num_epochs=30, batch_size=1, log_every=1, warmup_steps=1)
    model = leafe_jax.train(data, directory, config=config, log=log)
    assert model == directory / "model"
    return trees, data, config, model, seen


def test_examples_are_the_methods_own(trained):
    trees, data, *_ = trained
    assert data.weights == {"counterfactual": 1.0, "rehearsal": 1.0}
    rft = leafe_jax.make_examples("rft", iter(trees))
    assert rft.weights == {"success": 1.0} and len(rft.examples) == len(data.examples[-2:]) == 2
    for ours, theirs in zip(rft.examples, data.examples[-2:], strict=True):
        assert np.array_equal(ours.ids, theirs.ids) and theirs.source == 1


def test_from_trees_to_another_policy(policy, trained):
    _, data, config, model, seen = trained
    assert seen[-1][1] < seen[0][1]  # it has learned its examples
    tuned = leafe_jax.load_policy(model, policy.config)
    assert tuned.model == model
    tasks = policy.tasks("train", 2)
    before, after = leafe_jax.play(policy, tasks), leafe_jax.play(tuned, tasks)
    assert by_task(before) != by_task(after)
    evaluation = leafe_jax.evaluate(tuned, tasks, 2)
    assert leafe_jax.pass_at_k(evaluation)["all"]["samples"] == 2
    # The same call again resumes from the last checkpoint: there is nothing left to train.
    weights = (model / "model.safetensors").read_bytes()
    steps = []
    again = leafe_jax.train(data, model.parent, config=config, log=lambda s, m: steps.append(s))
    assert steps == [] and (again / "model.safetensors").read_bytes() == weights
    other = leafe_jax.Data(data.examples[:1], data.weights)
    with pytest.raises(leafe_jax.UserError, match="checkpoint"):
        leafe_jax.train(other, model.parent, config=config)


def test_training_leaves_signals_alone(trained):
    *_, seen = trained
    assert {handler for _, _, handler in seen} == {signal.getsignal(signal.SIGINT)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, leafe_jax.UserError])
def test_an_interrupted_call_leaves_the_policy_usable(policy, monkeypatch, error):
    tasks = policy.tasks("test", 2)
    expected = by_task(leafe_jax.play(policy, tasks, 2))
    step_many, calls = policy.env.step_many, []

    def interrupted(moves):
        calls.append(len(moves))
        if len(calls) == 3:
            raise error("stop")
        return step_many(moves)

    with monkeypatch.context() as patch:
        patch.setattr(policy.env, "step_many", interrupted)
        with pytest.raises(error, match="stop"):
            leafe_jax.play(policy, tasks, 2)
    assert by_task(leafe_jax.play(policy, tasks, 2)) == expected


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda p, d: leafe_jax.load_config("quikstart"), "quikstart.*quickstart"),
        (lambda p, d: leafe_jax.load_config("quickstart:fast"), "fast.*smoke"),
        (lambda p, d: leafe_jax.load_config("default:smoke"), "default.py:smoke"),
        (lambda p, d: leafe_jax.load_config(str(d / "mine.py")), "mine.py: no such"),
        (lambda p, d: leafe_jax.load_config("default", {"sampler.slots": 3}), "sampler.slots"),
        (lambda p, d: leafe_jax.load_config("default", {"seed": "x"}), "seed|int"),
        (lambda p, d: leafe_jax.load_policy(d), re.escape("config.json")),
        (lambda p, d: leafe_jax.load_policy("gs://bucket"), "local directory"),
        (lambda p, d: p.tasks("held-out"), "held-out.*train"),
        (lambda p, d: leafe_jax.play(p, []), "at least one task"),
        (lambda p, d: leafe_jax.play(p, ["test/pick/0000"]), "must be a Task"),
        (lambda p, d: leafe_jax.play(p, p.tasks("test", 1) * 2), "occurs twice"),
        (lambda p, d: leafe_jax.evaluate(p, p.tasks("test", 1), 0), "num_samples = 0"),
        (lambda p, d: leafe_jax.read_trees(d), "no search 'tree'"),
        (lambda p, d: leafe_jax.make_examples("sft", []), "'sft'.*leafe"),
        (lambda p, d: leafe_jax.make_examples("base", []), "makes no examples"),
        (lambda p, d: leafe_jax.make_examples("rft", [], leafe_jax.TrainConfig()), "TrainConfig"),
        (lambda p, d: leafe_jax.train(leafe_jax.make_examples("rft", []), d), "no example"),
        (
            lambda p, d: leafe_jax.pass_at_k(leafe_jax.Evaluation([], leafe_jax.Budget())),
            "pass_at_k: every task needs the same number of samples",
        ),
        (
            lambda p, d: leafe_jax.pass_at_k_difference(
                leafe_jax.evaluate(p, p.tasks("test", 2), 1), leafe_jax.evaluate(p, p.tasks("test", 1), 1)
            ),
            "pass_at_k_difference: needs the same tasks: 1 were played by one",
        ),
    ],
)  # fmt: skip
def test_errors_are_one_line(policy, tmp_path, call, said):
    with pytest.raises(leafe_jax.UserError, match=said) as raised:
        call(policy, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_damaged_block_is_refused(workdir, tmp_path):
    directory = tmp_path / "trees" / "tree"
    directory.mkdir(parents=True)
    for file in (workdir / "trees" / "tree").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    assert len(list(leafe_jax.read_trees(tmp_path))) == 2
    (directory / "0001.jsonl").write_bytes(b"{}\n")
    with pytest.raises(leafe_jax.UserError, match="0001.jsonl: damaged"):
        leafe_jax.read_trees(tmp_path)


# -- the package -----------------------------------------------------------------------------------
def test_names_are_imported_when_they_are_used(tmp_path):
    code = """
import sys, leafe_jax
def heavy(): return sorted({"jax", "flax", "torch", "transformers", "numpy"} & sys.modules.keys())
print(heavy(), set(dir(leafe_jax)) == {*leafe_jax.__all__, "__version__"})
leafe_jax.SearchConfig, leafe_jax.RunConfig, leafe_jax.TrainConfig, leafe_jax.UserError
print("jax" in sys.modules)
from leafe_jax import *
print("jax" in sys.modules, play is leafe_jax.play, "matplotlib" in sys.modules)
"""
    done = python(code, tmp_path)
    assert done.stdout.split("\n") == ["[] True", "False", "True True False", ""], done.stderr


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="'explode'.*explore.*load_policy"):
        leafe_jax.explode  # noqa: B018
    assert not hasattr(leafe_jax, "explode")


def test_the_page_describes_every_name():
    page = (ROOT / "docs" / "API.md").read_text()
    used = set(re.findall(r"leafe_jax\.(\w+)", page))
    assert used <= {*leafe_jax.__all__, "main"}
    assert {name for name in leafe_jax.__all__ if re.search(rf"\b{name}\b", page)} == {
        *leafe_jax.__all__
    }


def example() -> list[str]:
    """The docstring's code."""
    return [line[4:] for line in leafe_jax.__doc__.split("\n") if line.startswith("    ")]


@pytest.mark.slow
def test_the_example_runs_on_fewer_tasks(policy, tmp_path, monkeypatch, capsys):
    """In this process, whose sampler has its programs."""
    assert len(example()) <= 12
    code = "\n".join(example())
    for all_tasks, few in (('"train", 36', '"train", 12'), ('"test", 6', '"test", 2')):
        assert code.count(all_tasks) == 1
        code = code.replace(all_tasks, few)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["base", "leafe"]
    assert all("'value': " in line for line in lines)
    assert (tmp_path / "leafe" / "model" / "model.safetensors").stat().st_size > 0


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    """In an empty directory, as a user would paste it: training pays."""
    done = python("\n".join(example()), tmp_path)
    assert done.returncode == 0, done.stderr
    scores = {line.split()[0]: line for line in done.stdout.splitlines()}
    value = {name: float(line.split("'value': ")[1].split(",")[0]) for name, line in scores.items()}
    assert value["leafe"] > value["base"]
    assert (tmp_path / "leafe" / "model" / "model.safetensors").stat().st_size > 0
