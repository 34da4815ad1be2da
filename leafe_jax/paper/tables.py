"""What each table of the paper compares, in which environments, with which settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import ml_collections

from leafe_jax.errors import UserError
from leafe_jax.methods import base
from leafe_jax.paper.claims import Claim
from leafe_jax.run.presets import (
    add_ace,
    add_early_experience,
    add_leafe_on,
    add_rounds,
    add_search,
    add_variant,
    load_config,
)

Config: TypeAlias = ml_collections.ConfigDict
MODES = ("paper", "mini", "smoke")
GAMES = ("household", "sokoban", "science", "alfworld", "webshop", "code")
_QWEN = ("webshop", "alfworld", "scienceworld", "sokoban")


@dataclasses.dataclass(frozen=True)
class Table:
    """One table or figure.

    Attributes:
      title: in words.
      rows: "methods", or "searches" (stage 1 alone: the share of tasks that a search solves).
      add: adds what is compared to the config of a run that has LEAFE alone.
      claims: what the paper says of it.
      paper: configs of the paper's models, by the name of the cell.
      mini: environments in miniature.
      samples: episodes a task; 0 keeps the config's own number, in miniature 128.
      x: in sweeps, the method whose Pass@1 in a cell is that cell's place on the x axis.
      onto: cell -> the environment that its models are tested in, by the name of a config; {}: each in its
        own.
    """

    title: str
    rows: str
    add: Callable[[Config], None]
    claims: tuple[Claim, ...]
    paper: dict[str, str]
    mini: tuple[str, ...] = GAMES
    samples: int = 0
    x: str = ""
    onto: dict[str, str] = dataclasses.field(default_factory=dict)


def _alike(c: Config) -> None:
    """The base model, RFT at equal budget, and LEAFE."""
    add_search(c, "independent", method="independent")
    c.rft.trees = "independent"
    c.methods = ("base", "rft", "leafe")


def _controls(c: Config) -> None:
    """Those, and L_reh alone on 20% and on all successes."""
    _alike(c)
    add_variant(c, "reh_20", "leafe", counterfactual_weight=0.0)
    add_variant(c, "reh_100", "leafe", counterfactual_weight=0.0, rehearsal_share=1.0)


def _practising(c: Config, *names: str) -> None:
    """Methods that train on their own rollouts, with the tasks of `search.tree` and all of its environment
    steps together.

    They end within half a group of the limit, so groups are small where it is low.
    """
    tree = c.search.tree
    for name in names:
        c.methods = (*c.methods, name)
        if tree.num_tasks:  # else their number is known when the environment is
            steps = tree.num_tasks * tree.max_env_steps
            group, episodes = (8, 16) if steps >= 1000 else (2, 2)
            c[name].update(dict(num_tasks=tree.num_tasks, max_env_steps=steps, group_size=group))
            c[name].update(dict(episodes=episodes, iterations=10_000, probe_every=0))


def _on_grpo(c: Config) -> None:
    """GRPO, and what the paper puts on top of it."""
    _practising(c, "grpo")
    add_ace(c, "grpo", "ace_grpo")
    add_leafe_on(c, "grpo", "leafe_grpo", "tree_grpo")


def _main(c: Config) -> None:
    _controls(c)
    add_early_experience(c)
    add_ace(c)
    _on_grpo(c)


def _searches(c: Config) -> None:
    for name, fields in (
        ("independent", {"method": "independent"}), ("refine", {"method": "refine"}),
        ("linear", {"method": "linear"}), ("tree_without_e", {"show_experience": False}),
    ):  # fmt: skip
        add_search(c, name, **fields)
    c.methods = ()
    c.phases = ("explore", "report")


def _losses(c: Config) -> None:
    _controls(c)
    add_variant(c, "cf", "leafe", beta=0.0)
    add_variant(c, "leafe_100", "leafe", rehearsal_share=1.0)


def add_variants(c: Config) -> None:
    """LEAFE's own variants beside its controls (configs/variants.py says what each one is)."""
    _controls(c)
    add_search(c, "refine", method="refine")
    add_search(c, "tree_without_e", show_experience=False)
    add_variant(c, "no_rollback", "leafe", trees="refine")
    add_variant(c, "no_e", "leafe", trees="tree_without_e")
    add_variant(c, "cf", "leafe", beta=0.0)
    add_variant(c, "leafe_100", "leafe", rehearsal_share=1.0)
    add_rounds(c, 3)
    add_early_experience(c)
    add_leafe_on(c, "early_experience", "leafe_early", "tree_early")
    _practising(c, "grpo")
    add_leafe_on(c, "grpo", "leafe_grpo", "tree_grpo")


def _curve(c: Config) -> None:
    _alike(c)
    _practising(c, "grpo")


def _peers(c: Config) -> None:
    _curve(c)
    _practising(c, "gigpo", "sdpo", "erl")
    add_variant(c, "maxrl", "grpo", advantage="maxrl", reward="success")


def _alone(c: Config) -> None:
    _controls(c)
    _on_grpo(c)


_PASS_128 = (
    Claim("GRPO raises Pass@1", "grpo", "base", 1),
    Claim("GRPO hardly raises Pass@128 (by less than 5 points)", "grpo", "base", 128, within=0.05),
    Claim("LEAFE on GRPO has a higher Pass@128 than GRPO", "leafe_grpo", "grpo", 128),
    Claim("LEAFE has a higher Pass@128 than GRPO", "leafe", "grpo", 128),
    Claim("LEAFE has a higher Pass@128 than the base model", "leafe", "base", 128),
    Claim("LEAFE has a higher Pass@128 than RFT at equal budget", "leafe", "rft", 128),
    Claim("LEAFE has a higher Pass@128 than L_reh alone at 20%", "leafe", "reh_20", 128),
    Claim("LEAFE has a higher Pass@128 than L_reh alone at 100%", "leafe", "reh_100", 128),
    Claim("Early Experience lies above the base model", "early_experience", "base", 128),
    Claim("LEAFE has a higher Pass@128 than Early Experience", "leafe", "early_experience", 128),
    Claim("LEAFE has a higher Pass@128 than ACE", "leafe", "ace", 128),
    Claim("LEAFE on GRPO has a higher Pass@128 than ACE on GRPO", "leafe_grpo", "ace_grpo", 128),
)
_CODE = {
    "codecontests_qwen2_5_72b": "codecontests_qwen2_5_72b",
    "codecontests_qwen2_5_7b": "codecontests_qwen2_5_7b",
}


def _benchmarks(model: str) -> dict[str, str]:
    return {f"{name}_{model}": f"{name}_{model}" for name in _QWEN}


TABLES = {
    "table1": Table(
        "Table 1: four agent benchmarks",
        "methods", _main, _PASS_128, {**_benchmarks("qwen2_5_7b"), **_benchmarks("llama3_1_8b")},
    ),
    "table2": Table(
        "Table 2: CodeContests", "methods", _main, _PASS_128, _CODE, ("code",),
    ),
    "table3": Table(
        "Table 3: stage 1 at equal budget",
        "searches", _searches,
        (
            Claim("Trees solve more tasks than iterative refinement", "tree", "refine"),
            Claim("Refinement solves more tasks than independent sampling", "refine", "independent"),
            Claim("Trees solve more tasks than independent sampling", "tree", "independent"),
            Claim("Trees solve more tasks than linear rollback", "tree", "linear"),
            Claim("Trees solve more tasks with e than without", "tree", "tree_without_e"),
        ),
        _CODE,
    ),
    "table4": Table(
        "Table 4: the two losses",
        "methods", _losses,
        (
            Claim("L_cf + L_reh has a higher Pass@128 than L_reh alone at 20%", "leafe", "reh_20", 128),
            Claim("L_cf + L_reh has a higher Pass@128 than L_reh alone at 100%", "leafe", "reh_100", 128),
            Claim("L_cf alone has a higher Pass@128 than L_reh alone", "cf", "reh_20", 128),
        ),
        {"scienceworld_qwen2_5_7b": "scienceworld_qwen2_5_7b"},
    ),
    "table6": Table(
        "Table 6: LEAFE with and without GRPO",
        "methods", _alone,
        (
            Claim("LEAFE alone has a higher Pass@128 than GRPO", "leafe", "grpo", 128),
            Claim("LEAFE on GRPO has a higher Pass@1 than LEAFE alone", "leafe_grpo", "leafe", 1),
        ),
        _CODE, ("code", "household"),
    ),
    "table5": Table(
        "Table 5: trained in one environment, tested in another",
        "methods", _alone,
        (
            Claim("LEAFE transfers: a higher Pass@128 than the base model", "leafe", "base", 128),
            Claim("LEAFE transfers better than GRPO", "leafe", "grpo", 128),
            Claim("GRPO loses against the base model", "base", "grpo", 128),
        ),
        _CODE, ("household", "alfworld"),
        onto={**dict.fromkeys(_CODE, "code"), "household": "alfworld", "alfworld": "household"},
    ),
    "peers": Table(
        "Peers: methods of other papers",
        "methods", _peers,
        tuple(
            Claim(f"LEAFE has a higher Pass@128 than {name}", "leafe", name.lower(), 128)
            for name in ("GRPO", "GiGPO", "SDPO", "ERL", "MaxRL")
        ),
        _benchmarks("qwen2_5_7b"),
    ),
    "variants": Table(
        "LEAFE's own variants",
        "methods", add_variants,
        (
            Claim("Going back to tau beats starting over", "leafe", "no_rollback", 128),
            Claim("LEAFE with e beats LEAFE without", "leafe", "no_e", 128),
            Claim("L_cf adds to L_reh at 20%", "leafe", "reh_20", 128),
            Claim("L_cf adds to L_reh at 100%", "leafe_100", "reh_100", 128),
            Claim("L_reh adds to L_cf", "leafe", "cf", 128),
            Claim("A second round adds to the first", "leafe_2", "leafe", 128),
            Claim("A third round adds to the second", "leafe_3", "leafe_2", 128),
            Claim("LEAFE adds to Early Experience", "leafe_early", "early_experience", 128),
            Claim("LEAFE adds to GRPO", "leafe_grpo", "grpo", 128),
        ),
        _benchmarks("qwen2_5_7b"), ("household",),
    ),
    "sweep": Table(
        "Sweep over how often the base does the right thing unasked",
        "methods", _curve,
        (
            Claim("LEAFE has a higher Pass@128 than GRPO", "leafe", "grpo", 128),
            Claim("LEAFE has a higher Pass@128 than RFT at equal budget", "leafe", "rft", 128),
        ),
        {}, tuple(f"unaided_{scale}" for scale in (0, 1, 2, 4, 8)), x="base",
    ),
    "figure3": Table(
        "Figure 3: Pass@k to k = 1024",
        "methods", _curve,
        (
            Claim("LEAFE's curve lies above GRPO's at k = 1024", "leafe", "grpo", 1024),
            Claim("LEAFE's curve lies above the base model's at k = 1024", "leafe", "base", 1024),
        ),
        {f"{name}_1024": source for name, source in _CODE.items()}, ("household_1024",), samples=1024,
    ),
}  # fmt: skip


def config(table: str, mode: str) -> Config:
    """The grid of a table: `lab` and `cells`, one config of a run for each environment.

    Args:
      table: one of TABLES.
      mode: "paper" (its models and settings), "mini" (the embedded base), "smoke" (two tasks, one seed).

    Raises:
      ValueError: there is no such mode.
    """
    spec = TABLES[table]
    modes = MODES if spec.paper else MODES[1:]
    if mode not in modes:
        raise ValueError(
            f"--config=configs/paper/{table}.py:{mode}: the modes are {', '.join(modes)}"
        )
    made = Config({
        "lab": {"table": table, "mode": mode, "seeds": (0,) if mode == "smoke" else (0, 1, 2)},
        "cells": {},
    })  # fmt: skip
    if mode == "paper":
        cells = {name: load_config(source) for name, source in spec.paper.items()}
        for cell in cells.values():
            cell.evaluate.num_samples = spec.samples or cell.evaluate.num_samples
    else:
        names = spec.mini if mode == "mini" else spec.mini[:1]
        cells = {name: _miniature(name, mode, spec) for name in names}
    for name, cell in cells.items():
        spec.add(cell)
        made.cells[name] = cell
        if spec.onto:
            made.targets = made.get("targets", Config())
            made.targets[name] = _target(cell, spec.onto[name], mode, spec)
    return made


def _target(cell: Config, onto: str, mode: str, spec: Table) -> Config:
    """How the models of a cell are tested in another environment."""
    if mode == "paper":  # the same settings on MBPP, whose file is in env.options.problems
        c = cell.copy_and_resolve_references()
        c.env.options.layout = "mbpp"
    else:
        c = _miniature(onto, mode, spec)
    c.methods, c.phases = ("base",), ("evaluate", "report")
    return c


def _miniature(name: str, mode: str, spec: Table) -> Config:
    """The embedded base model in one environment."""
    # A cell's workdir has one evaluation of each method, so 1,024 samples have a cell of their own.
    if name in ("household", "household_1024"):
        c = load_config("quickstart", "full")
        c.search.tree.num_tasks, c.evaluate.num_tasks = 96, 36 if name == "household" else 24
    elif name.startswith("unaided_"):
        c = load_config("unaided_sweep", "smoke" if mode == "smoke" else "full")
        c.bootstrap.rate_scale = float(name.removeprefix("unaided_"))
    else:
        c = load_config(name)
    # Methods on their own rollouts need a number, for an equal budget. `code` has 85 tasks.
    c.search.tree.num_tasks = c.search.tree.num_tasks or 80
    # Pass@128 needs as many samples; every table has the same ones, so that they share evaluations.
    c.evaluate.num_samples = spec.samples or 128
    if mode == "smoke":
        c.search.tree.num_tasks = c.search.tree.block_size = 2
        c.search.tree.max_env_steps = 20
        c.search.tree.num_roots = 1
        c.evaluate.num_tasks = c.evaluate.block_size = 2
        c.evaluate.num_samples = 4
        c.sampler.num_slots = 8
        c.sampler.compile_ahead = False
        for section in (c[method] for method in base.REGISTRY if method in c):
            if "train" in section:
                section.train.num_epochs = 1
    return c


@dataclasses.dataclass(frozen=True)
class LabConfig:
    """Which grid it is.

    Raises:
      UserError: there is no such table, or no seed.
    """

    table: str = "table1"  # one of TABLES
    mode: str = "paper"  # as given behind the config's name; of the page's heading
    seeds: tuple[int, ...] = (0, 1, 2)  # one run of every cell for each

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise UserError(f"lab.table = {self.table!r}: must be one of {', '.join(TABLES)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"lab.seeds = {self.seeds!r}: must be different numbers, at least one")
