"""The program as a user runs it: the smoke quickstart, resuming, refusing, reproducing."""

import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from results import check_results

from leafe_jax.main import main
from leafe_jax.models import hf
from leafe_jax.run import experiment
from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import relevant

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def start(workdir, *overrides) -> subprocess.Popen:
    command = [sys.executable, "-m", "leafe_jax.main", f"--config={QUICKSTART}:smoke"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *overrides], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def run(workdir, *overrides) -> tuple[int, str, str]:
    process = start(workdir, *overrides)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def call(monkeypatch, workdir, *overrides) -> int:
    """main() in this process: for what ends early."""
    arguments = ["main", f"--config={QUICKSTART}:smoke", f"--workdir={workdir}", *overrides]
    monkeypatch.setattr(sys, "argv", arguments)  # config_flags looks there for overrides
    return main(arguments)


def trees(workdir: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted((workdir / "trees" / "tree").glob("0???.jsonl")))


def modified(workdir: Path) -> dict[Path, int]:
    """When each file was written, but for the lock, which says who has it."""
    files = (p for p in workdir.rglob("*") if p.is_file() and p.name != ".lock")
    return {p: p.stat().st_mtime_ns for p in files}


def timeless(workdir: Path) -> dict:
    """results.json without its times."""
    results = json.loads((workdir / "results.json").read_text())
    for part in (
        *results["methods"].values(),
        *results["searches"].values(),
        *results["fits"].values(),
    ):
        del part["seconds"]
    return results


def test_results_and_report(finished):
    workdir, out, err = finished
    results = json.loads((workdir / "results.json").read_text())
    for method in ("base", "leafe"):
        families = results["methods"][method]["families"]
        assert set(families) == {"all", "pick", "look", "clean", "heat", "cool", "two"}
        assert set(families["all"]["pass_at_k"]) == {"1", "2", "4", "8"}
        for value in families["all"]["pass_at_k"].values():
            assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
        # Counted, not estimated: what the table says is what the files hold.
        parts = [json.loads(p.read_text()) for p in (workdir / "evaluate" / method).glob("0*.json")]
        steps = sum(sum(task["steps"]) for part in parts for task in part["tasks"])
        assert results["methods"][method]["budget"]["env_steps"] == steps
    check_results(workdir, results)
    assert "leafe - base" in out
    assert results["searches"]["tree"]["tasks"] == 12
    assert "Pass@1 %" in out and "Search tree:" in out and "Method leafe: trained on" in out
    assert "explore tree: 12/12 trees" in err  # progress in plain lines where there is no terminal
    assert (workdir / "report" / "index.html").stat().st_size > 20_000
    names = {
        k for line in (workdir / "metrics.jsonl").read_text().splitlines() for k in json.loads(line)
    }
    assert {"explore/tree/tasks_solved", "leafe/loss", "eval/leafe/pass_at_1"} <= names
    assert list((workdir / "tensorboard").iterdir())


@pytest.mark.slow
def test_sokoban_on_the_embedded_model(tmp_path, monkeypatch):
    """The laptop form of another environment, with replies that are no moves."""
    arguments = ["main", f"--config={ROOT}/configs/sokoban.py:smoke", f"--workdir={tmp_path}"]
    arguments.append("--config.sampler.temperature=1.8")  # cooler, it always moves
    monkeypatch.setattr(sys, "argv", arguments)
    assert main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["methods"]["base"]["families"]) == {"all", "sokoban-6x6-1"}
    assert results["searches"]["tree"]["tasks"] == 4
    lines = trees(tmp_path).decode().splitlines()
    turns = [t for line in lines for node in json.loads(line)["nodes"] for t in node["turns"]]
    moves = ("up", "down", "left", "right", "still")
    assert all(t["valid"] == (t["action"].strip().lower() in moves) for t in turns)
    assert {t["valid"] for t in turns} == {True, False}


def test_stage_one_plays_training_tasks_only(finished):
    workdir, _, _ = finished
    played = {json.loads(line)["task_id"] for line in trees(workdir).decode().splitlines()}
    assert len(played) == 12 and all(task.startswith("train/") for task in played)


def test_the_shipped_model_opens_in_transformers():
    import transformers

    directory = ROOT / "leafe_jax" / "assets" / "base"
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert sum(p.stat().st_size for p in directory.iterdir()) < 10e6
    text = "[1] You arrive at drawer 1. Żółć\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert model.config.vocab_size == len(tokenizer)


def test_a_finished_run_does_nothing(finished, capsys, monkeypatch):
    workdir, _, _ = finished
    before = modified(workdir)
    # Also where it could not be trained, as on a machine with fewer devices.
    assert call(monkeypatch, workdir, "--config.leafe.train.mesh.tensor=3") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == modified(workdir)


@pytest.mark.parametrize(
    ("override", "phase", "phases"),
    [
        ("--config.search.tree.reflect_every=4", "trees/tree", None),
        ("--config.leafe.beta=0.5", "leafe", None),
        ("--config.evaluate.temperature=0.5", "evaluate/base", None),
        ("--config.seed=9", "trees/tree", None),
        # Also of the phases that others have left what these take up.
        ("--config.search.tree.reflect_every=4", "trees/tree", "('fit',)"),
        ("--config.leafe.beta=0.5", "leafe", "('evaluate',)"),
        ("--config.evaluate.temperature=0.5", "evaluate/base", "('report',)"),
    ],
)
def test_a_changed_config_is_refused_by_name(
    finished, override, phase, phases, capsys, monkeypatch
):
    workdir, _, _ = finished
    chosen = [f"--config.phases={phases}"] if phases else []
    assert call(monkeypatch, workdir, override, *chosen) == 2
    error = capsys.readouterr().err
    field = override.removeprefix("--config.").split("=")[0]
    assert error.startswith(f"error: {field} = ") and f"phase '{phase}'" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_training_that_cannot_begin_claims_nothing(finished, tmp_path, capsys, monkeypatch):
    """What rows need shows after stage 1; the fix that the error asks for must not be refused."""
    subprocess.run(["cp", "-r", str(finished[0] / "trees"), str(tmp_path)], check=True)
    phases = "--config.phases=('explore','fit')"
    assert call(monkeypatch, tmp_path, phases, "--config.leafe.train.seq_len=40") == 2
    assert "seq_len = 40: the longest example needs" in capsys.readouterr().err
    # As after a first checkpoint, which a run goes on from.
    (tmp_path / "leafe" / "checkpoints" / "50").mkdir(parents=True)
    assert call(monkeypatch, tmp_path, phases) == 2
    assert "seq_len = 384, but phase 'leafe'" in capsys.readouterr().err
    (tmp_path / "leafe" / "checkpoints" / "50").rmdir()
    assert call(monkeypatch, tmp_path, phases, "--config.sampler.num_slots=64") == 0
    assert (tmp_path / "leafe" / "model" / "config.json").exists()


def test_a_method_wants_finished_trees(finished, tmp_path, capsys, monkeypatch):
    subprocess.run(["cp", "-r", str(finished[0] / "trees"), str(tmp_path)], check=True)
    record = tmp_path / "trees" / "tree" / "phase.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "done": False}))
    assert call(monkeypatch, tmp_path, "--config.phases=('fit',)") == 2
    assert "the search 'tree' of this workdir is not finished" in capsys.readouterr().err


def test_the_report_is_of_what_is_finished(finished, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-rp", str(finished[0]), str(workdir)], check=True)
    report_only = "--config.phases=('report',)"
    assert call(monkeypatch, workdir, report_only) == 0
    assert "nothing to do" in capsys.readouterr().out
    record = workdir / "evaluate" / "leafe" / "phase.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "done": False}))
    (workdir / "evaluate" / "leafe" / "0001.json").unlink()
    os.utime(workdir / "results.json", (2**31, 2**31))  # a clock that has been set back
    assert call(monkeypatch, workdir, report_only) == 0, "it is older than what is there"
    told = capsys.readouterr()
    assert "nothing to do" not in told.out
    assert "phase 'evaluate/leafe' is not finished any more: the last report had" in told.err
    assert set(json.loads((workdir / "results.json").read_text())["methods"]) == {"base"}


def test_what_was_lost_is_made_again(finished, tmp_path, capsys, monkeypatch):
    """Nothing of it is a dead end, and the same bytes come again."""
    workdir = tmp_path / "elsewhere"  # a workdir may be moved
    subprocess.run(["cp", "-r", str(finished[0]), str(workdir)], check=True)
    tree, lines = workdir / "trees" / "tree" / "0001.jsonl", []
    lines = tree.read_text().splitlines(keepends=True)
    tree.write_text("".join(lines[:-1]))
    (workdir / "trees" / "tree" / "0001 (copy).jsonl").write_text("".join(lines))
    (workdir / "evaluate" / "base" / "0000.json").unlink()
    (workdir / "evaluate" / "leafe" / "0001.json").write_text("{}")
    subprocess.run(["rm", "-r", str(workdir / "leafe" / "model")], check=True)
    (workdir / "results.json").write_bytes(bytes(100))
    (workdir / "report" / "pass_at_k.png").unlink()
    assert call(monkeypatch, workdir) == 0
    check_finished(workdir, capsys.readouterr().out, finished)
    before = modified(workdir)
    assert call(monkeypatch, workdir) == 0
    assert "nothing to do" in capsys.readouterr().out and before == modified(workdir)


@pytest.mark.parametrize(
    ("phases", "lost", "message"),
    [
        ("'report'", "evaluate/base/0001.json", "0001.json is missing; put 'evaluate' into --config.phases"),
        ("'report'", "trees/tree/0000.jsonl", "0000.jsonl is missing; put 'explore' into --config.phases"),
        ("'evaluate'", "leafe/model/config.json evaluate/leafe/0000.json", "model is damaged: .*; put 'fit' into --config.phases"),
        ("'fit'", "trees/tree/phase.json leafe/summary.json", "the search 'tree' of this workdir is not finished"),
    ],
)  # fmt: skip
def test_what_was_lost_is_named(finished, phases, lost, message, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished[0]), str(workdir)], check=True)
    for name in (*lost.split(), "results.json"):
        (workdir / name).unlink()
    assert call(monkeypatch, workdir, f"--config.phases=({phases},)") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and re.search(message, error), error


def test_a_model_that_misses_the_gate_is_refused_again(tmp_path, capsys, monkeypatch):
    config = ROOT / "configs/bootstrap.py"
    made = runpy.run_path(str(config))["get_config"]()
    (tmp_path / "habits").mkdir()
    record = {
        "schema": 4, "phase": "habits", "done": True, "seconds": 1.0, "files": {}, "made_of": {},
        "made_by": [],
        "config": relevant(RunConfig.read(made), "habits"),
    }  # fmt: skip
    (tmp_path / "habits" / "phase.json").write_text(json.dumps(record))
    row = dict.fromkeys(made.bootstrap.gate, 1.0) | {"told": 0.25}
    (tmp_path / "habits" / "habits.json").write_text(json.dumps({"all": row}))
    for gate, code in ((0.6, 2), (0.6, 2), (0.2, 0)):
        arguments = ["main", f"--config={config}", f"--workdir={tmp_path}"]
        arguments += ["--config.phases=('habits',)", f"--config.bootstrap.gate.told={gate}"]
        monkeypatch.setattr(sys, "argv", arguments)
        assert main(arguments) == code
        error = capsys.readouterr().err
        assert ("misses it: all: told 25.0% < 60.0%" in error) == (code == 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.max_len=2048", "sampler.max_len = 2048: must be from 1 to"),
        ("bootstrap.model.hidden_size=36", "hidden_size = 36: must be a multiple of num_heads = 8"),
        ("bootstrap.dtype=float16", "bootstrap.dtype = 'float16': must be bfloat16 or float32"),
        ("bootstrap.train.schedule=steep", "train.schedule = 'steep': must be"),
    ],
)
def test_a_bootstrap_that_cannot_begin_claims_nothing(
    override, message, tmp_path, capsys, monkeypatch
):
    arguments = ["main", f"--config={ROOT}/configs/bootstrap.py:smoke", f"--workdir={tmp_path}"]
    arguments.append(f"--config.{override}")
    monkeypatch.setattr(sys, "argv", arguments)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "bootstrap").exists()


def test_a_workdir_keeps_its_own_base_model(tmp_path, monkeypatch, capsys):
    """Later phases in a workdir that has made its base must not take the embedded one."""
    (tmp_path / "bootstrap").mkdir()
    (tmp_path / "bootstrap" / "phase.json").write_text("{}")
    assert call(monkeypatch, tmp_path, "--config.phases=('explore',)") == 2
    assert f"{tmp_path}/bootstrap/model" in capsys.readouterr().err


def test_another_seed_another_run(finished, tmp_path, monkeypatch):
    """That the same seed makes the same bytes, cut off or not: `check_finished` below."""
    workdir, other = finished[0], tmp_path / "other"
    assert call(monkeypatch, other, "--config.seed=1", "--config.phases=('explore',)") == 0
    assert trees(other) != trees(workdir)


def check_finished(workdir, out, finished):
    """It printed what `finished` did, and its trees and weights are the same bytes."""
    expected, expected_out, _ = finished
    if "nothing to do" in out:  # the last kill came after the report: print it again
        done = subprocess.run(
            [sys.executable, "-m", "leafe_jax.run.report.write", f"--workdir={workdir}"],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        out = done.stdout
    assert out == expected_out and trees(workdir) == trees(expected)
    assert timeless(workdir) == timeless(expected)
    weights = "leafe/model/model.safetensors"
    assert (workdir / weights).read_bytes() == (expected / weights).read_bytes()
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], *sorted(k for k in line if k != "step")) for line in steps]
    assert len(logged) == len(set(logged)), "no step is logged twice"


def kill_and_finish(directory, finished, kills, seed):
    """SIGKILL at random moments until `kills` have hit a run at work; every run must finish."""
    rng = random.Random(seed)
    hits, runs = 0, 0
    workdir = directory / "0"
    while hits < kills:
        process = start(workdir)
        try:
            out, err = process.communicate(timeout=rng.uniform(3, 16))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            hits += 1
            for path in workdir.rglob("trees/tree/*.jsonl*"):
                # What was finished can be read, also in the block that was cut off.
                for line in path.read_text().splitlines()[:-1]:
                    json.loads(line)
        else:  # it got through between two kills: go on with a new one
            assert process.returncode == 0, err
            check_finished(workdir, out, finished)
            runs += 1
            workdir = directory / str(runs)
    code, out, err = run(workdir)
    assert code == 0, err
    check_finished(workdir, out, finished)
    print(f"{hits} kills, {runs + 1} runs finished")


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "seed"), [(1, 0), (10, 1)])
def test_killed_runs_end_with_the_same_table(finished, tmp_path, kills, seed):
    kill_and_finish(tmp_path, finished, kills, seed)


@pytest.mark.parametrize("trains", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_override_each(tmp_path, finished, monkeypatch, trains):
    """The controls of the method are reached by one override; data differ as they should. Without training
    the model stays as it is."""
    source, _, _ = finished

    def untrained(start, *_):
        return hf.load_params(start, hf.read_config(str(start)), "float32")

    if not trains:
        monkeypatch.setattr(experiment, "fine_tune", untrained)
    counts = {}
    for name, override in {
        "both": "leafe.beta=1.0",
        "rehearsal-only": "leafe.counterfactual_weight=0.0",
        "counterfactual-only": "leafe.beta=0.0",
        "all-rehearsed": "leafe.rehearsal_share=1.0",
    }.items():
        workdir = tmp_path / name
        workdir.mkdir()
        subprocess.run(["cp", "-r", str(source / "trees"), str(workdir)], check=True)
        phases = "--config.phases=('explore','fit')"
        assert call(monkeypatch, workdir, phases, f"--config.{override}") == 0
        summary = json.loads((workdir / "leafe" / "summary.json").read_text())
        counts[name] = tuple(summary["examples"].values())  # counterfactual pairs, rehearsed
    assert counts["both"][0] > 0 and counts["both"][1] > 0
    assert counts["rehearsal-only"] == (0, counts["both"][1])
    assert counts["counterfactual-only"] == (counts["both"][0], 0)
    assert counts["all-rehearsed"][1] > counts["both"][1]


def test_exploration_controls(tmp_path, monkeypatch):
    for override, check in {
        "search.tree.show_experience=False": lambda n: n["experience"] is None,
        "search.tree.experience_span=step": lambda n: n["experience"] is not None,
    }.items():
        workdir = tmp_path / override
        less = "--config.search.tree.num_tasks=6"
        phases = "--config.phases=('explore',)"
        assert call(monkeypatch, workdir, phases, f"--config.{override}", less) == 0
        nodes = [
            n for line in trees(workdir).decode().splitlines() for n in json.loads(line)["nodes"]
        ]
        branches = [n for n in nodes if n["parent"] is not None]
        assert branches and all(check(n) for n in branches)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.search.tree.reflect_evry=3"], r"no such field: .*reflect_every"),
        (["--config.env.name=chess"], r"env.name = 'chess': must be one of "),
        (["--config.search.tree.reflect_every=0"], r"search.tree.reflect_every = 0"),
        (["--config.search.tree.num_tasks=many"], r"search.tree.num_tasks"),
        (["--config.search.tree.num_tasks=9999"], r"search.tree.num_tasks = 9999: split 'train' has 384"),
        (["--config.search.tree.split=test"], r"search.tree.split = 'test'"),
        (["--config.leafe.train.mesh.tensor=3"], r"train.mesh: data = -1, fsdp = 1, tensor = 3 does not"),
        (["--config.leafe.train.schedule=steep"], r"train.schedule = 'steep': must be one of"),
        (["--config.context.mode=diary"], r"context.mode = 'diary': must be one of dialogue"),
        (["--config.model.path=/nowhere"], r"model.path = /nowhere: no such directory"),
        (["--config.model.path={tmp}"], r"no config.json there"),
        (["--config.sampler.max_len=4096"], r"sampler.max_len = 4096"),
        (["--config.leafe.counterfactual_weight=0.0", "--config.leafe.beta=0.0"], r"leafe.beta = 0"),
        (["--config={sokoban}:smoke", "--config.env.options.levels=('{levels}',)"], r"levels.txt, line 3, column 3: 'x'"),
        (["--workdir=/proc/nowhere"], r"--workdir=/proc/nowhere: cannot be written"),
        (["--workdir=gs://bucket/run"], r"--workdir=gs://bucket/run: must be a local directory; mount a bucket"),
        (["--process_id=0"], r"--coordinator, --num_processes and --process_id: must be given all three"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], r"--coordinator=here: must be host:port"),
        (["--num_processes=two"], r"num_processes"),
        (["--config=configs/nowhere.py"], r"No such file or directory: 'configs/nowhere.py'"),
        (["--config={quickstart}:huge"], r"the modes are full and smoke"),
        (["--config.phases=('bootstrap',)"], r"phases = 'bootstrap': must have a section bootstrap"),
        (["--config.phases=('report',)"], r"no phase to report is finished \(trees/tree, leafe, "),
        (["stray"], r"unexpected argument 'stray'"),
        (["--config.model.path={mismatch}"], r"tokenizer has id \d+, but the model's vocab_size is 99"),
    ],
)  # fmt: skip
def test_wrong_input_gives_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    levels = write(tmp_path / "levels.txt", "; 0\n#####\n#@x.#\n#####\n")
    mismatch = tmp_path / "mismatch"
    subprocess.run(["cp", "-r", str(ROOT / "leafe_jax/assets/base"), str(mismatch)], check=True)
    config = json.loads((mismatch / "config.json").read_text())
    (mismatch / "config.json").write_text(json.dumps({**config, "vocab_size": 99}))
    values = dict(
        tmp=tmp_path,
        levels=levels,
        mismatch=mismatch,
        quickstart=QUICKSTART,
        sokoban=ROOT / "configs/sokoban.py",
    )
    arguments = [a.format(**values) for a in arguments]
    base = [f"--workdir={tmp_path / 'run'}"]
    if not any(argument.startswith("--config=") for argument in arguments):
        base.append(f"--config={QUICKSTART}:smoke")  # overrides hold for every --config there is
    monkeypatch.setattr(sys, "argv", ["main", *base, *arguments])
    assert main(sys.argv) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert not list(tmp_path.glob("run/*/phase.json")), "a run that cannot start claims nothing"


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_finished(tmp_path, finished):
    mount = tmp_path / "small"
    mount.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(mount)]
    made = subprocess.run(mounting, capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        code, _, err = run(mount / "run")
        notes = ("a second", "attention backend: ", "sampler: ")
        lines = [line for line in err.splitlines() if not any(note in line for note in notes)]
        assert code == 2 and len(lines) == 1 and "the disk is full" in lines[0]
        for path in mount.rglob("*.jsonl"):
            for line in path.read_text().splitlines():
                json.loads(line)
        subprocess.run(["mount", "-o", "remount,size=200m", str(mount)], check=True)
        code, out, err = run(mount / "run")
        assert code == 0, err
        check_finished(mount / "run", out, finished)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.slow
def test_preempted_runs_say_so(finished, tmp_path):
    (tmp_path / "run").mkdir()
    subprocess.run(["cp", "-r", str(finished[0] / "trees"), str(tmp_path / "run")], check=True)
    process = start(tmp_path / "run", "--config.leafe.train.num_epochs=400")
    for line in process.stderr:
        if line.startswith("leafe:"):
            break
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=200)[1]
    assert process.returncode == 75
    (step,) = re.findall(
        r"train: told to stop; step (\d+) is saved; the same command goes on", rest
    )
    assert (tmp_path / "run" / "leafe" / "checkpoints" / step).is_dir()
