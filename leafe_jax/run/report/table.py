"""results.json, and the tables and sentences made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.runtime.files import read_json

# 3 (since 2026-12): budgets have `replayed_steps`.
RESULTS_SCHEMA = 3
_BUDGET = (
    ("env_steps", "environment steps"),
    ("replayed_steps", "replayed steps"),
    ("generated_tokens", "generated tokens"),
    ("prefilled_tokens", "prefilled tokens"),
    ("cached_tokens", "cached tokens"),
    ("episodes", "episodes"),
)


def read_results(workdir: Path) -> dict[str, Any]:
    """The content of a run's results.json.

    Raises:
      UserError: it is missing, broken, or has another schema.
    """
    path = workdir / "results.json"
    if not path.exists():
        raise UserError(f"{path}: missing; run the phase 'report' of leafe_jax.main")
    results = read_json(path)
    found = results.get("schema")
    if found != RESULTS_SCHEMA:
        raise UserError(f"{path}: schema {found!r}: must be {RESULTS_SCHEMA}")
    fields = ("methods", "searches", "fits", "versions", "config_hash", "seed", "commit", "device")
    for field in fields:
        if field not in results:
            raise UserError(f"{path}: field {field!r} is missing; run the phase 'report' again")
    return results


def families_of(results: dict[str, Any]) -> list[str]:
    """First "all", then the families of all methods, sorted."""
    names = {f for method in results["methods"].values() for f in method["families"]}
    return ["all", *sorted(names - {"all"})]


def shown_ks(results: dict[str, Any]) -> list[str]:
    """The k that the tables show: the smallest, one in the middle, and the largest."""
    ks = [k for m in results["methods"].values() for k in m["families"]["all"]["pass_at_k"]]
    ks = sorted(set(ks), key=int)
    return sorted({ks[0], ks[len(ks) // 2], ks[-1]}, key=int)


def _cell(value: dict[str, float] | None) -> str:
    if value is None:  # this method has fewer samples
        return "-"
    return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def result_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of success rates per family and method, in percent with 95% intervals over tasks."""
    ks = shown_ks(results)
    header = ["family", "method", "tasks", *[f"Pass@{k} %" for k in ks]]
    rows = []
    for family in families_of(results):
        for method, data in results["methods"].items():
            if family in data["families"]:
                summary = data["families"][family]
                cells = [_cell(summary["pass_at_k"].get(k)) for k in ks]
                rows.append([family, method, str(summary["tasks"]), *cells])
    return header, rows


def budget_rows(results: dict[str, Any], times: bool = False) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of what each part of the run spent. `times` adds a column of wall-clock seconds."""
    header = ["spent on", *[label for _, label in _BUDGET], *["wall seconds"] * times]
    parts = {f"search {name}": search for name, search in results["searches"].items()}
    parts |= {f"evaluating {name}": method for name, method in results["methods"].items()}
    rows = []
    for name, part in parts.items():
        seconds = [f"{part['seconds']:,.0f}" if "seconds" in part else "-"] * times
        rows.append([name, *[f"{part['budget'][key]:,}" for key, _ in _BUDGET], *seconds])
    return header, rows


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """A table as text, with columns padded to equal width."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
             for row in [header, ["-" * w for w in widths], *rows]]  # fmt: skip
    return "\n".join(lines)


def console_table(results: dict[str, Any]) -> str:
    """The text that a run prints at its end: results, searches, fits, budget.

    It contains no times, so the same run always prints the same text.
    """
    parts = []
    if results["methods"]:
        parts.append(
            "Success on held-out tasks, one plain rollout a sample, 95% intervals over tasks"
        )
        parts.append(text_table(*result_rows(results)))
    parts += context_sentences(results)
    parts += [search_sentence(*item) for item in results["searches"].items()]
    parts += [fit_sentence(*item) for item in results["fits"].items()]
    parts.append(text_table(*budget_rows(results)))
    return "\n\n".join(parts)


def context_sentences(results: dict[str, Any]) -> list[str]:
    """One sentence for each part of the run in which an episode filled the context."""
    parts = {f"of {name}": method for name, method in results["methods"].items()}
    parts |= {f"of search {name}": search for name, search in results["searches"].items()}
    return [
        f"{part['out_of_context']:,} of {part['budget']['episodes']:,} episodes {name} ended because the"
        " context was full (sampler.max_len)."
        for name, part in parts.items()
        if part.get("out_of_context")
    ]


def search_sentence(name: str, search: dict[str, Any]) -> str:
    """A sentence that says what a search found."""
    reflections = ", ".join(f"{n} {status}" for status, n in search["reflections"].items())
    return (
        f"Search {name}: {search['solved_tasks']} of {search['tasks']} tasks solved in"
        f" {search['episodes']} trajectories; {search['branches_successful']} of"
        f" {search['branches']} branches succeeded. {spent_sentence(search)} Reflections:"
        f" {reflections or 'none'}."
    )


def spent_sentence(search: dict[str, Any]) -> str:
    """A sentence that says what a search spent on a task, in the units of its budget."""
    spent, tasks = search["budget"], max(1, search["tasks"])
    steps = spent["env_steps"] + spent["replayed_steps"]
    replayed = " (replayed ones included)" if spent["replayed_steps"] else ""
    return (
        f"A task took {steps / tasks:,.1f} environment steps{replayed} and"
        f" {spent['generated_tokens'] / tasks:,.1f} generated tokens."
    )


def fit_sentence(method: str, fit: dict[str, Any]) -> str:
    """A sentence that says what a method was trained on."""
    examples = ", ".join(f"{number} {label}" for label, number in fit["examples"].items())
    return f"Method {method}: trained on {examples}; {fit['target_tokens']} target tokens."
