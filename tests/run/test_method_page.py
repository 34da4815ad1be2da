"""docs/METHOD.md: the fields, files and functions that it names are there."""

import re
from pathlib import Path

from leafe_jax.run.config import default_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "METHOD.md").read_text()


def test_the_fields_of_the_open_points_exist():
    rows = PAGE.split("## Open points")[1].splitlines()[6:]
    config, found = default_config(), []
    for row in rows:
        section = ""
        for name in re.findall(r"`([^`]+)`", row.split("|")[-2]):
            if name.startswith("."):  # of the section of the one before
                name = section + name
            section = name.rpartition(".")[0]
            value = config
            for part in name.replace("search.", "search.tree.").split("."):
                assert part in value, (name, row)
                value = value[part]
            found.append(name)
    assert len(set(found)) > 20


def test_the_functions_are_in_the_files_named():
    """`name` or `Class.name`, one or several, before `file.py` in parentheses."""
    found = 0
    for names, file in re.findall(r"((?:`[\w.]+`(?:, | and )?)+) \(`([\w/]+\.py)`", PAGE):
        (path,) = [p for p in (ROOT / file, ROOT / "leafe_jax" / file) if p.is_file()]
        source = path.read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            part = name.split(".")[-1]
            assert re.search(rf"(?:def|class) {part}\b|^    {part}:", source, re.M), (name, file)
            found += 1
    assert found > 20
