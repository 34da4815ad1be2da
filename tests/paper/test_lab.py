"""The laboratory without runs: what is missing is made, what fails is named, and the page stays the same."""

import json
from pathlib import Path

import pytest
from made import results, spent

from leafe_jax.errors import UserError
from leafe_jax.methods import base
from leafe_jax.paper import lab, tables
from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import closure, relevant
from leafe_jax.run.presets import load_config
from leafe_jax.run.workdir import InUse

ROOT = Path(__file__).resolve().parents[2]


class Runs:
    """Stands for experiment.run: writes results, or raises what it is told to."""

    def __init__(self, monkeypatch):
        self.made, self.errors, self.on_run = [], {}, lambda config, workdir: None
        monkeypatch.setattr(lab.experiment, "run", self)

    def __call__(self, config, workdir):
        name = "/".join(Path(workdir).parts[-2:])
        self.made.append(name)
        if name in self.errors:
            raise self.errors.pop(name)
        self.on_run(config, workdir)
        ours = config.seed + 1
        counts = {m: [ours, 4, 0] if m.startswith("leafe") else [0, 1, 0] for m in config.methods}
        searches = {s: ([s == "tree", True, False], spent(60, 90)) for s in config.search}
        made = results(config, counts, searches)
        Path(workdir, "results.json").write_text(json.dumps(made))


def grid(table="table6", seeds=(0, 1), cells=("household", "code")):
    c = tables.config(table, "mini")
    c.lab.seeds = seeds
    for name in [n for n in c.cells if n not in cells]:
        del c.cells[name]
    return c


@pytest.fixture
def runs(monkeypatch):
    return Runs(monkeypatch)


def test_what_is_missing_is_run_once_with_every_seed(tmp_path, runs):
    lab.run(grid(), str(tmp_path))
    assert runs.made == ["code/seed0", "household/seed0", "code/seed1", "household/seed1"]
    page = (tmp_path / "table6-mini.md").read_text()
    lab.run(grid(), str(tmp_path))
    assert len(runs.made) == 4 and (tmp_path / "table6-mini.md").read_text() == page
    # Another setting is another run; another host's computation is not.
    changed = grid()
    changed.cells.code.leafe.beta = 0.5
    changed.cells.household.sampler.num_slots = 3
    lab.run(changed, str(tmp_path))
    assert runs.made[4:] == ["code/seed0", "code/seed1"]
    # A further seed.
    lab.run(grid(seeds=(0, 1, 2), cells=("household",)), str(tmp_path))
    assert runs.made[6:] == ["household/seed2"]


def test_a_laboratory_that_is_killed_gives_the_same_page(tmp_path, runs):
    lab.run(grid(), str(tmp_path / "whole"))
    for name in ("code/seed0", "household/seed0", "code/seed1", "household/seed1"):
        runs.errors[name] = SystemExit(75)
        with pytest.raises(SystemExit):
            lab.run(grid(), str(tmp_path / "killed"))
    lab.run(grid(), str(tmp_path / "killed"))
    for suffix in ("md", "html"):
        whole, killed = (
            (tmp_path / d / f"table6-mini.{suffix}").read_bytes() for d in ("whole", "killed")
        )
        assert whole == killed


def test_a_run_that_fails_or_is_elsewhere_is_named_and_the_others_go_on(tmp_path, runs):
    runs.errors = {"household/seed0": UserError("no room"), "code/seed1": InUse("in use")}
    lab.run(grid(), str(tmp_path))
    page = (tmp_path / "table6-mini.md").read_text()
    assert "household, seed 0: no room" in page
    assert "code, seed 1: another process is working on it" in page
    assert "code: 3 tasks, seeds 0; household: 3 tasks, seeds 1" in page
    runs.errors = dict.fromkeys(["household/seed0", "code/seed0"], UserError("no room\x1b[31m"))
    with pytest.raises(UserError, match="no run of table6 has succeeded: code, seed 0: no room"):
        lab.run(grid(seeds=(0,)), str(tmp_path / "other"))


def test_the_page_has_claims_budgets_and_the_papers_numbers_apart(tmp_path, runs):
    lab.run(grid("table1", cells=("household",)), str(tmp_path))
    page = (tmp_path / "table1-mini.md").read_text()
    ours, papers = page.split("## The paper's own numbers")
    assert papers.lstrip().startswith("NOT measured here") and "67.45 / 85.40" in papers
    assert "67.45 / 85.40" not in ours
    # Pass@1 of leafe: (1/4 + 1 + 0) / 3 with seed 0, (2/4 + 1 + 0) / 3 with seed 1.
    row = next(line for line in ours.splitlines() if line.startswith("| leafe |"))
    assert row.split("|")[2].strip().startswith("45.8 [")
    assert (
        "LEAFE has a higher Pass@128 than the base model: undecided; leafe - base at Pass@4" in ours
    )
    if "grpo" not in base.REGISTRY:
        assert "GRPO raises Pass@1: not measured, grpo or base has not been run." in ours
    assert "Search alternatives: alternatives on train, 3 tasks, expert: player;" in ours
    experts = {
        line.split("|")[2].strip(): line.split("|")[-2].strip()
        for line in ours.partition("## Budgets")[2].splitlines()
        if line.startswith("| household |")
    }
    assert experts["early_experience"] == "player" and experts["leafe"] == experts["rft"] == "-"
    web = (tmp_path / "table1-mini.html").read_text()
    assert "<section class=paper>" in web and "data:image/png;base64," in web


def test_a_table_of_searches(tmp_path, runs):
    lab.run(grid("table3"), str(tmp_path))
    page = (tmp_path / "table3-mini.md").read_text()
    assert "| tree | 66.7 [" in page and "| refine | 33.3 [" in page
    assert (
        "Trees solve more tasks than iterative refinement: undecided; tree - refine is +33.3"
        in page
    )


def test_models_are_tested_in_another_environment(tmp_path, runs):
    def model(method):
        path = tmp_path / "mini" / "household" / "seed0" / method / "model"
        path.mkdir(parents=True)
        return str(path)

    own = {
        name: model(name) for name in ("leafe", "reh_20")
    }  # the others had nothing to learn from
    paths = {}

    def note(config, workdir):
        if "elsewhere" in workdir:
            paths[Path(workdir).name] = config.model.path
            assert config.env.name == "alfworld" and tuple(config.methods) == ("base",)

    runs.on_run = note
    c = grid("table5", seeds=(0,), cells=("household",))
    lab.run(c, str(tmp_path))
    assert "ace_grpo" not in paths
    assert {name: paths[name] for name in ("base", "rft", "leafe", "reh_20", "reh_100")} == {
        "base": "", "rft": "", "reh_100": "", **own
    }  # fmt: skip
    number = len(runs.made)
    lab.run(c, str(tmp_path))
    assert len(runs.made) == number
    kept = json.loads((tmp_path / "results/mini/table5/household-seed0.json").read_text())
    assert (
        kept["protocol"]["environment"] == "alfworld" and kept["config"]["env.name"] == "household"
    )
    page = (tmp_path / "table5-mini.md").read_text()
    assert "household: Protocol: alfworld" in page
    # Other settings of the test are another test.
    c.targets.household.evaluate.temperature = 0.5
    lab.run(c, str(tmp_path))
    assert len(runs.made) > number


def test_a_sweep_draws_one_point_a_cell(tmp_path, runs, monkeypatch):
    drawn = {}
    real = lab.page.compare.draw

    def draw(rows, methods, ks, x, path):
        drawn.update(cells=list(rows["experiments"]), methods=methods, ks=ks, x=x)
        real(rows, methods, ks, x, path)

    monkeypatch.setattr(lab.page.compare, "draw", draw)
    lab.run(grid("sweep", seeds=(0,), cells=("unaided_0", "unaided_8")), str(tmp_path))
    assert drawn["cells"] == ["unaided_0", "unaided_8"] and (drawn["x"], drawn["ks"]) == (
        "base",
        (1, 4),
    )
    page = (tmp_path / "sweep-mini.md").read_text()
    assert "unaided_0 Pass@1 | unaided_0 Pass@4 | unaided_8 Pass@1" in page
    with pytest.raises(ValueError, match="configs/paper/sweep.py:paper: the modes are mini, smoke"):
        tables.config("sweep", "paper")


def test_bad_fields_are_named(tmp_path):
    for change, said in (
        (lambda c: c.lab.update(table="table9"), "lab.table = 'table9': must be one of table1"),
        (lambda c: c.lab.update(seeds=(1, 1)), "lab.seeds = .*: must be different numbers"),
        (
            lambda c: c.cells.household.search.tree.update(method="x"),
            "cells.household: search.tree.method",
        ),
    ):
        c = grid()
        change(c)
        with pytest.raises(UserError, match=said):
            lab.run(c, str(tmp_path))
    with pytest.raises(
        ValueError, match="configs/paper/table1.py:big: the modes are paper, mini, smoke"
    ):
        tables.config("table1", "big")


# -- the grids ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("table", "mode"),
    [(t, mode) for t, spec in tables.TABLES.items() for mode in tables.MODES[not spec.paper :]],
)
def test_every_grid_can_be_run(table, mode):
    """Its config file is there, and every cell is a config whose methods find what they read."""
    c = load_config(str(ROOT / "configs" / "paper" / f"{table}.py"), mode)
    cells = lab.read(c).cells
    assert cells
    spec = tables.TABLES[table]
    rows = set()
    for cell in cells.values():
        read = RunConfig.read(cell)
        for part in (*read.methods, *(f"trees/{s}" for s in read.search)):
            closure(read, part)
        rows |= set(read.methods if spec.rows == "methods" else read.search)
    for claim in spec.claims:
        for row in (claim.row, claim.minus):
            assert row in rows, (table, row)


def test_cells_of_one_name_share_their_work():
    """What two tables put into the same directory depends on the same fields with the same values."""
    known = {}
    for table in tables.TABLES:
        for name, cell in tables.config(table, "mini").cells.items():
            read = RunConfig.read(cell)
            parts = [part for m in read.methods for part in closure(read, m)]
            parts += [f"trees/{s}" for s in read.search] + [f"evaluate/{m}" for m in read.methods]
            for part in set(parts) - {"base"}:
                fields = relevant(read, part)
                first = known.setdefault((name, part), (table, fields))
                assert first[1] == fields, (name, part, first[0], table)
    assert len(known) > 50
