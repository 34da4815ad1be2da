"""results.json, and the tables and sentences made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.run import protocol
from leafe_jax.run.intervals import LEVEL
from leafe_jax.runtime import sources
from leafe_jax.runtime.files import read_json

# 4 (since 2026-12): `solved` of a search, `budget` of a method that plays; exact intervals, `differences`,
# `protocol`, `made_by` for each phase; budgets have `replayed_steps`.
RESULTS_SCHEMA = 4
_MISSES = round(1 - LEVEL, 9)  # share of the intervals that may miss
_BUDGET = (
    ("env_steps", "environment steps"),
    ("replayed_steps", "replayed steps"),
    ("generated_tokens", "generated tokens"),
    ("prefilled_tokens", "prefilled tokens"),
    ("cached_tokens", "cached tokens"),
    ("episodes", "episodes"),
)


def read_results(workdir: Path, name: str = "results.json") -> dict[str, Any]:
    """The content of a run's results.json, or of a copy under another name.

    Raises:
      UserError: it is missing, broken, or has another schema.
    """
    path = workdir / name
    if not path.exists():
        raise UserError(f"{path}: missing; run the phase 'report' of leafe_jax.main")
    results = read_json(path)
    found = results.get("schema")
    if found != RESULTS_SCHEMA:
        raise UserError(f"{path}: schema {found!r}: must be {RESULTS_SCHEMA}")
    fields = (
        "methods", "differences", "searches", "fits", "protocol", "made_by", "versions", "config",
        "config_hash", "device",
    )  # fmt: skip
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


def shown_pairs(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The differences that the tables show: every method with the first, and the last with every one."""
    methods = list(results["methods"])
    return [
        pair
        for pair in results["differences"]
        if pair["minus"] == methods[0] or pair["method"] == methods[-1]
    ]


def turned(pair: dict[str, Any]) -> dict[str, Any]:
    """The difference of the same two methods the other way round."""
    families = {
        family: {
            "tasks": found["tasks"],
            "pass_at_k": {
                k: {"value": -v["value"], "low": -v["high"], "high": -v["low"], "p": v["p"]}
                for k, v in found["pass_at_k"].items()
            },
        }
        for family, found in pair["families"].items()
    }
    return {"method": pair["minus"], "minus": pair["method"], "families": families}


def difference_rows(
    results: dict[str, Any], pairs: list[dict[str, Any]], families: list[str]
) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of paired differences, in percentage points with 95% intervals.

    A star says that the difference is not zero even if all cells of this table are to hold at once: its p
    is at most 5% over their number (Bonferroni).
    """
    ks = shown_ks(results)
    listed = [
        (family, pair, pair["families"][family])
        for family in families
        for pair in pairs
        if family in pair["families"]
    ]
    cells = [found["pass_at_k"].get(k) for *_, found in listed for k in ks]
    limit = _MISSES / max(sum(cell is not None for cell in cells), 1)
    rows = [
        [
            family, f"{pair['method']} - {pair['minus']}", str(found["tasks"]),
            *[difference_cell(found["pass_at_k"].get(k), limit) for k in ks],
        ]
        for family, pair, found in listed
    ]  # fmt: skip
    return ["family", "difference", "tasks", *[f"Pass@{k}, points" for k in ks]], rows


def difference_cell(value: dict[str, float] | None, limit: float) -> str:
    """A difference in percentage points; a star if its p is at most `limit`."""
    if value is None:
        return "-"
    mean, low, high = (points(value[name]) for name in ("value", "low", "high"))
    return f"{mean} [{low}, {high}]{'*' * (value['p'] <= limit)}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign; zero is "+0.0"."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def misses_sentence(rows: list[list[str]]) -> str:
    """How many intervals a table shows, and how many of them are to be expected to miss."""
    number = sum("[" in cell for row in rows for cell in row)
    return (
        f"{number} intervals of 95% each: up to {_MISSES:.0%} of them, about {_MISSES * number:.1f}, are"
        " expected to miss the true value."
    )


def stars_sentence(rows: list[list[str]]) -> str:
    """What the stars of a table of differences mean."""
    number = sum("[" in cell for row in rows for cell in row)
    return (
        f"Paired by task; the sampling keys are shared. *: not zero with all {number} differences of this"
        " table at once (Bonferroni, 95% for all of them together)."
    )


def provenance_sentence(results: dict[str, Any], writer: sources.Code) -> str:
    """A caution if the results, and what `writer` prints of them, are not of one clean commit; else
    ""."""
    parts = {name: list(codes) for name, codes in results["made_by"].items()}
    if writer not in parts.get("report", []):
        parts["this output"] = [writer]
    names: dict[str, list[str]] = {}  # code in words -> what it has made
    for name, codes in parts.items():
        for code in codes:
            names.setdefault(sources.told(code), []).append(name)
    everything = [code for codes in parts.values() for code in codes]
    dirty = any(code["dirty"] for code in everything)
    if len(names) <= 1 and not dirty:
        return ""
    told = "; ".join(f"{', '.join(made)} by {code}" for code, made in names.items())
    if not dirty and len({code["sources"] for code in everything}) == 1:
        return f"Note: made by several commits, but their leafe_jax and envs are the same: {told}."
    kind = "code with uncommitted changes" if dirty else "several versions of the code"
    return f"CAUTION: made by {kind}: {told}."


def budget_rows(results: dict[str, Any], times: bool = False) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of what each part of the run spent. `times` adds a column of wall-clock seconds."""
    header = ["spent on", *[label for _, label in _BUDGET], *["wall seconds"] * times]
    parts = {f"search {name}": search for name, search in results["searches"].items()}
    parts |= {f"training {name}": fit for name, fit in results["fits"].items() if "budget" in fit}
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
        header, rows = result_rows(results)
        parts += [text_table(header, rows), misses_sentence(rows)]
        pairs = shown_pairs(results)
        if pairs:
            header, rows = difference_rows(results, pairs, ["all"])
            parts += [text_table(header, rows), stars_sentence(rows)]
    parts.append(protocol.sentence(results["protocol"]))
    parts += context_sentences(results)
    parts += [search_sentence(*item) for item in results["searches"].items()]
    parts += [fit_sentence(*item) for item in results["fits"].items()]
    parts.append(text_table(*budget_rows(results)))
    caution = provenance_sentence(results, sources.code())
    if caution:
        parts.append(caution)
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
        f" {reflections or 'none'};"
        f" {search['experiences_cut']} experiences cut."
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
    if "playbook" in fit:
        book = fit["playbook"]
        return (
            f"Method {method}: a playbook of {examples}, at most {book['token_budget']} tokens, from"
            f" {book['reviews']} reviews. Refused: {book['duplicate']} duplicates, {book['full']} beyond"
            f" the token budget, {book['empty']} empty; {book['unreadable']} replies of the curator were"
            " unreadable. No weight is trained."
        )
    trained = f"Method {method}: trained on {examples}; {fit['target_tokens']} target tokens;"
    if "iterations" not in fit:
        return f"{trained} {fit['duplicates']} exact duplicates left out."
    best = fit["best"]
    shown = (
        f" best probe after iteration {best['iteration']}, Pass@1 {100 * best['pass_at_1']:.1f}%;"
        if best
        else ""
    )
    return (
        f"{trained} {fit['iterations']} iterations, {fit['dropped_groups']} groups without signal"
        f" dropped;{shown} its probes took {fit['probe_budget']['env_steps']:,} environment steps more."
    )
