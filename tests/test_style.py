"""House style, checked on the sources: length of files and functions, parameters, and types."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("leafe_jax", "envs", "configs", "tests")
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 500, 80, 8
TYPED = ("config", "train")  # names that must have a type in leafe_jax

# Offences that are not fixed yet. No line may be added; a line must go when its offence is fixed.
KNOWN: set[str] = set()


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """All parameters except self and cls; *args and **kwargs count as one each."""
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return [p for p in every if p.arg not in ("self", "cls")]


def offences(source: str, file: str, typed: bool) -> set[str]:
    """Everything in a file that breaks a rule, as "file: what".

    Args:
      source: text of the file.
      file: its name in the result.
      typed: True if names in TYPED need an annotation.
    """
    found = set()
    if len(source.splitlines()) > MAX_FILE:
        found.add(f"{file}: more than {MAX_FILE} lines")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = parameters(node)
            if node.end_lineno - node.lineno + 1 > MAX_FUNCTION:
                found.add(f"{file}: {node.name}: more than {MAX_FUNCTION} lines")
            if len(given) > MAX_PARAMETERS:
                found.add(f"{file}: {node.name}: more than {MAX_PARAMETERS} parameters")
            untyped = {p.arg for p in given if p.annotation is None}
        elif isinstance(node, ast.ClassDef):
            assigned = [x for x in node.body if isinstance(x, ast.Assign)]
            untyped = {t.id for x in assigned for t in x.targets if isinstance(t, ast.Name)}
        else:
            continue
        if typed:
            found |= {f"{file}: {node.name}: {name} has no type" for name in untyped & set(TYPED)}
    return found


def test_every_file_keeps_the_rules():
    found = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            found |= offences(path.read_text(encoding="utf-8"), name, folder == "leafe_jax")
    assert not found - KNOWN, "new offences"
    assert not KNOWN - found, "fixed: remove them from KNOWN"


def test_nothing_is_named_like_a_line_of_output():
    """A command pasted with its output makes files of it, and `git add -A` takes them along."""
    names = {p.name for folder in ("", *FOLDERS, "docs") for p in (ROOT / folder).iterdir()}
    assert not [name for name in names if not re.fullmatch(r"[\w.-]+", name)]


def test_the_rules_find_what_they_should():
    body = "\n".join(["    pass"] * MAX_FUNCTION)
    source = (
        f"def long(a):\n{body}\n"
        "def wide(self, a, b, c, d, *, e, f, g, h, **more): pass\n"
        "def fits(self, a, b, c, d, *, e, f, g, h): pass\n"
        "def untyped(config, train: int): pass\n"
        "class C:\n    train = 3\n    config: int = 4\n" + "\n" * MAX_FILE
    )
    assert offences(source, "x", typed=True) == {
        "x: more than 500 lines", "x: long: more than 80 lines", "x: wide: more than 8 parameters",
        "x: untyped: config has no type", "x: C: train has no type",
    }  # fmt: skip
    assert not {o for o in offences(source, "x", typed=False) if "type" in o}
