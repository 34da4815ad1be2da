"""One Markdown page of all tables whose result files are in a directory.

    python -m leafe_jax.paper.publish --results=results --out=docs/RESULTS.md
    python -m leafe_jax.paper.publish --results=results --out=docs/RESULTS.md --check

`--results` is the folder `results` of a laboratory's workdir, or a copy of it. The page depends on these
files alone. `--check` writes nothing, and fails if the page is not what these files give.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.paper import numbers, page
from leafe_jax.paper.tables import MODES, TABLES, LabConfig
from leafe_jax.run.report.table import read_results
from leafe_jax.runtime import console
from leafe_jax.runtime.files import local_path, read_text, whole

_MAX_BYTES = 2**24
_NAME = re.compile(r"(.+)-seed(\d+)\.json")


def text_of(results: Path) -> str:
    """The page of a folder of result files.

    Raises:
      UserError: there is no result file, or one is broken.
    """
    pages = []
    for mode in MODES:
        for table, spec in TABLES.items():
            found = _read(results / mode / table)
            if not found:
                continue
            cells = [numbers.read_cell(name, found[name], spec.rows) for name in sorted(found)]
            seeds = tuple(sorted({seed for cell in cells for seed in cell.seeds}))
            parts = page.blocks(LabConfig(table, mode, seeds), spec, cells, {})
            pages.append(page.markdown(parts))
    if not pages:
        raise UserError(f"--results={results}: no result file there")
    intro = (
        "<!-- Written by python -m leafe_jax.paper.publish; do not edit. -->\n\n"
        "What the pages' parts mean is in docs/PAPER.md.\n\n"
    )
    return intro + "\n".join(pages)


def _read(directory: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Cell -> seed -> results.json."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(directory.glob("*.json")):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            cell, seed = match[1], int(match[2])
            found.setdefault(cell, {})[seed] = read_results(directory, path.name)
    return found


def main(argv: list[str] | None = None) -> int:
    """Writes or checks the page. Returns 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m leafe_jax.paper.publish", description=main.__doc__
    )
    parser.add_argument("--results", required=True, help="folder of result files")
    parser.add_argument("--out", required=True, help="the Markdown page")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    console.set_up()
    flags = parser.parse_args(argv)
    try:
        text = text_of(local_path("--results=", flags.results))
        out = local_path("--out=", flags.out)
        if flags.check:
            if read_text(out, _MAX_BYTES) != text:
                raise UserError(f"{out}: not what {flags.results} gives; write it again")
        else:
            with whole(out) as file:
                file.write(text)
            console.say(str(out))
    except UserError as error:
        console.complain(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
