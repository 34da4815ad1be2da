"""Templates of prompts: Jinja files that say what a model reads.

A template is rendered in jinja2's sandbox. It cannot reach Python, read a file or include another
template, and it gives the same text every time. The values that are put into it (observations,
replies, advice) are text to the engine, whatever they contain: it never evaluates them.

The templates of a style are the files of its folder here; those that are the same in all styles are in
`any`. `NAME.VARIANT.jinja` takes the place of `NAME.jinja` for environments of that variant. The last
line break of a file is not part of its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from envs import files
from envs.errors import EnvDataError

_ROOT = Path(__file__).parent
_MAX_BYTES = 2**20  # of a template file
_MAX_RANGE = 1000  # steps of a loop over range(), as many as an episode could have


def find(style: str, name: str, variant: str = "") -> Path:
    """The package's own file of a template."""
    own, general = f"{name}.{variant}.jinja", f"{name}.jinja"
    here = {path.name for path in (_ROOT / style).iterdir()}
    if not here & {own, general}:
        return _ROOT / "any" / general
    return _ROOT / style / (own if own in here else general)


class Template:
    """A template file, compiled.

    Args:
      path: the file.
      field: the config field that names it, for error messages.
      variables: names that the template may use.

    Attributes:
      text: content of the file.

    Raises:
      EnvDataError: the file is missing, no text or longer than 1 MiB, is not valid Jinja, or uses an
        unknown variable, filter or test. The message names field, file and line.
    """

    def __init__(self, path: Path, field: str, variables: Sequence[str]):
        self._where = f"{field} = {path}"
        try:
            self.text = files.read_text(path, _MAX_BYTES)
        except EnvDataError as error:
            raise EnvDataError(f"{field}: {error}") from error
        try:
            tree = _JINJA.parse(self.text)
            self._refuse_unknown(tree, variables)
            code: CodeType = _JINJA.compile(tree, filename=self._where)
            self._template = jinja2.Template.from_code(_JINJA, code, _JINJA.globals)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(error.lineno, error.message or "wrong syntax") from error
        # Python's own compiler refuses what is nested too deeply.
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise self._error(None, f"too complicated ({error})") from error

    def render(self, **values: Any) -> str:
        """The text for these values.

        Raises:
          EnvDataError: the template fails on them; the message names field, file and line.
        """
        try:
            return self._template.render(values)
        except Exception as error:  # an expression in a template can raise anything
            raise self._error(self._line(error), _reason(error)) from error

    def _refuse_unknown(self, tree: nodes.Template, variables: Sequence[str]) -> None:
        unknown = meta.find_undeclared_variables(tree) - {*variables, *_JINJA.globals}
        for node in tree.find_all(nodes.Name):
            if node.name in unknown:
                known = ", ".join(variables)
                raise self._error(node.lineno, f"{node.name!r} is none of its variables: {known}")
        for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
            for found in tree.find_all(kind):
                raise self._error(found.lineno, "must not use other templates")

    def _line(self, error: BaseException) -> int | None:
        """The template's line where an error arose; jinja2 puts it into the traceback."""
        line, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._where:
                line = trace.tb_lineno
            trace = trace.tb_next
        return line

    def _error(self, line: int | None, reason: str) -> EnvDataError:
        place = "" if line is None else f", line {line}"
        return EnvDataError(f"{self._where}{place}: {reason}")


def fenced(program: str) -> str:
    """A program in a Markdown block whose fence is longer than any run of backticks in it."""
    inside = max((len(run) for run in re.findall(r"`+", program)), default=0)
    fence = "`" * max(3, inside + 1)
    return f"{fence}python\n{program}\n{fence}"


def _without(text: str, head: str) -> str:
    """An observation without the description, which some environments' first one begins with."""
    return text.removeprefix(head).lstrip("\n")


def _range(*bounds: int) -> range:
    steps = range(*bounds)
    if len(steps) > _MAX_RANGE:
        raise ValueError(f"range() has {len(steps)} steps: must be at most {_MAX_RANGE}")
    return steps


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _sandbox() -> ImmutableSandboxedEnvironment:
    sandbox = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    functions: Mapping[str, Any] = {"range": _range, "namespace": jinja2.utils.Namespace}
    sandbox.globals = dict(functions)  # the others draw random text or are of no use here
    del sandbox.filters["random"]
    sandbox.filters |= {"without": _without, "fenced": fenced}
    return sandbox


_JINJA = _sandbox()
