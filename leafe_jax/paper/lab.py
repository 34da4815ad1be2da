"""The laboratory: runs what is missing of a grid of cells and seeds, and writes one page from all of it.

    WORKDIR/MODE/CELL/seedN/        an ordinary workdir: one run of all methods of a table
    WORKDIR/results/MODE/TABLE/     results.json of each run, small: CELL-seedN.json
    WORKDIR/TABLE-MODE.md, .html    the page

Tables that share a cell share its workdir, and so its searches, models and evaluations. A killed
laboratory continues with the same command. Several hosts with a common file system may run it at the same
time: a run that another one is working on is left to it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from envs.base import EnvDataError
from leafe_jax.errors import UserError
from leafe_jax.methods.ace import Ace
from leafe_jax.paper import numbers, page
from leafe_jax.paper.tables import TABLES, LabConfig
from leafe_jax.run import experiment
from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import flatten, without_seed
from leafe_jax.run.report.table import read_results
from leafe_jax.run.workdir import InUse
from leafe_jax.runtime import console, processes
from leafe_jax.runtime.files import local_path, make_directory, read_json, whole, write_json
from leafe_jax.runtime.settings import build

_LOG = logging.getLogger("leafe_jax")


@dataclasses.dataclass(frozen=True)
class _Run:
    """One cell with one seed.

    Attributes:
      cell: its name.
      config: of the run.
      workdir: of the run.
      kept: its results.json.
      target: how its models are tested, if that is in another environment.
    """

    cell: str
    config: ml_collections.ConfigDict
    workdir: epath.Path
    kept: epath.Path
    target: ml_collections.ConfigDict | None

    @property
    def name(self) -> str:
        return f"{self.cell}, seed {self.config.seed}"


def is_grid(config: ml_collections.ConfigDict) -> bool:
    """Whether a config is one of configs/paper/, and not that of a run."""
    return "lab" in config and "cells" in config


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a config of configs/paper/ says.

    Attributes:
      lab: settings of the grid.
      cells: cell -> config of its runs, but for the seed.
      targets: cell -> config of the environment in which its models are tested, if that is another one.
    """

    lab: LabConfig
    cells: dict[str, ml_collections.ConfigDict]
    targets: dict[str, ml_collections.ConfigDict]


def read(config: ml_collections.ConfigDict) -> Grid:
    """The grid of a config.

    Raises:
      UserError: names the first bad field.
    """
    given = config.to_dict()
    for name in given:
        if name not in ("lab", "cells", "targets"):
            raise UserError(f"{name}: there is no such field")
    parts = {}
    for part in ("cells", "targets"):
        section = config.get(part, {})
        parts[part] = {name: section[name] for name in section}
        for name, cell in parts[part].items():
            try:
                RunConfig.read(cell)
            except UserError as error:
                raise UserError(f"{part}.{name}: {error}") from error
    return Grid(build(LabConfig, given["lab"], "lab"), **parts)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Runs what is missing of a grid, and writes its page from what is finished.

    A run that fails leaves its place on the page to the reason; the others go on.

    Raises:
      UserError: a bad field, or no run has succeeded.
    """
    grid = read(config)
    root = epath.Path(local_path("--workdir=", workdir))
    missing: dict[str, str] = {}
    for one in _runs(grid, root):
        if not processes.together(one.name, decide=functools.partial(_look, one)):
            reason = _attempt(one)
            if reason:
                missing[one.name] = reason
    processes.together("page", decide=lambda _: write_page(config, workdir, missing))


def _runs(grid: Grid, root: epath.Path) -> list[_Run]:
    """All runs; first every cell with the first seed."""
    found, lab = [], grid.lab
    for seed in lab.seeds:
        for name, cell in grid.cells.items():
            kept = root / "results" / lab.mode / lab.table / f"{name}-seed{seed}.json"
            workdir = root / lab.mode / name / f"seed{seed}"
            target = grid.targets.get(name)
            found.append(_Run(name, _seeded(cell, seed), workdir, kept,
                              None if target is None else _seeded(target, seed)))  # fmt: skip
    return found


def _seeded(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    made = config.copy_and_resolve_references()
    made.seed = seed
    return made


def _look(one: _Run, _: Any) -> bool:
    return _is_current(one)


def _is_current(one: _Run) -> bool:
    """Whether the results of a run are there, and are those of its config."""
    if not one.kept.exists():
        return False
    found = read_json(one.kept)
    try:
        same = _same(found["config"], one.config)
        if one.target is not None:
            same = same and _same(found["target"], one.target)
        return same and sorted(found["config"]["methods"]) == sorted(one.config.methods)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{one.kept}: no results of a run; move it away to make it again"
        ) from error


def _same(known: dict[str, Any], config: ml_collections.ConfigDict) -> bool:
    """Whether a flat config gives the results of another one, as far as methods go that both have."""
    wanted = flatten(RunConfig.read(config))
    return without_seed(known) == without_seed(wanted) and known["seed"] == wanted["seed"]


def _attempt(one: _Run) -> str:
    """Makes a run; returns why it did not succeed, or ""."""
    if processes.first():
        console.say(f"== {one.name}")
    try:
        if processes.first():
            make_directory(one.workdir)
        experiment.run(one.config, str(one.workdir))
        tested = {} if one.target is None else _test_elsewhere(one, one.target)
    except InUse:
        return "another process is working on it"
    except (UserError, EnvDataError) as error:
        if processes.first():
            _LOG.warning("%s: %s", one.name, error)
        return str(error)
    if processes.first():
        make_directory(one.kept.parent)
        # The page makes its own differences, over seeds and environments.
        kept = read_json(one.workdir / "results.json") | {"differences": []} | tested
        write_json(one.kept, kept)
    return ""


def _test_elsewhere(one: _Run, how: ml_collections.ConfigDict) -> dict[str, Any]:
    """What results.json says of the models of a run in another environment.

    Each is the base model of a run of its own, WORKDIR/elsewhere/METHOD. A method whose agent is more than
    a model (ACE) is left out.
    """
    config = RunConfig.read(one.config)
    tested: dict[str, Any] = {}
    for method in config.methods:
        if isinstance(config.find(method), Ace):
            continue
        target = how.copy_and_resolve_references()
        target.model.path = _model_of(config, method, one.workdir)
        directory = one.workdir / "elsewhere" / method
        if processes.first():
            make_directory(directory)
        experiment.run(target, str(directory))
        if processes.first():
            results = read_json(directory / "results.json")
            tested.setdefault("methods", {})[method] = results["methods"]["base"]
            tested |= {name: results[name] for name in ("protocol", "made_by")}
            tested["target"] = results["config"] | {"model.path": how.model.path}
    return tested


def _model_of(config: RunConfig, method: str, workdir: epath.Path) -> str:
    """The model that a method has left; that of its start if it had nothing to learn from."""
    while method != "base":
        path = workdir / method / "model"
        if path.exists():
            return str(path)
        method = config.find(method).config.start
    return config.model.path


def write_page(
    config: ml_collections.ConfigDict, workdir: str, missing: Mapping[str, str] | None = None
) -> None:
    """Writes the page of a grid from the result files that are there; runs nothing.

    Args:
      config: the grid.
      workdir: of the laboratory.
      missing: run -> why it is not there, where that is known.

    Raises:
      UserError: there is no result file.
    """
    grid = read(config)
    lab, root = grid.lab, epath.Path(local_path("--workdir=", workdir))
    spec, absent = TABLES[lab.table], dict(missing or {})
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for one in _runs(grid, root):
        if _is_current(one):
            kept = read_results(one.kept.parent, one.kept.name)
            found.setdefault(one.cell, {})[int(one.config.seed)] = kept
        else:
            absent.setdefault(one.name, "not run yet")
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise UserError(f"{workdir}: no run of {lab.table} has succeeded: {reasons}")
    done = [numbers.read_cell(n, found[n], spec.rows) for n in grid.cells if n in found]
    parts = page.blocks(lab, spec, done, absent)
    picture = None
    if spec.rows == "methods":
        picture = page.sweep(done, spec.x) if spec.x else page.curves(done)
    for suffix, text in (("md", page.markdown(parts)), ("html", page.web_page(parts, picture))):
        path = root / f"{lab.table}-{lab.mode}.{suffix}"
        with whole(path) as file:
            file.write(text)
        console.say(str(path))
