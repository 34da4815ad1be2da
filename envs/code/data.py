"""Programming problems and their files: CodeContests, MBPP, HumanEval and our own set.

Every layout becomes `Problem`s. envs/code/files.py reads the files.
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from envs.base import EnvDataError
from envs.code.files import Record, read_records

LAYOUTS = ("own", "codecontests", "mbpp", "humaneval")
SPLITS = ("train", "valid", "test")
OWN_SET = Path(__file__).parents[1] / "assets" / "code" / "problems.jsonl"

_SOURCES = ("unknown", "codechef", "codeforces", "hackerearth", "codejam", "", "atcoder", "aizu")
_PYTHON3 = (3, "PYTHON3")
# The message of a failed comparison. It is bounded, since only the end of a long one is kept.
_GOT = "'got ' + repr(_got)[:1000]"
_TOO_DEEP = (RecursionError, MemoryError)  # Python's parser raises one or the other
# Splits of MBPP by task_id (Austin et al. 2021, section 2.1); 1 to 10 are for few-shot prompts.
_MBPP_SPLITS = {"test": range(11, 511), "valid": range(511, 601), "train": range(601, 975)}


@dataclasses.dataclass(frozen=True)
class Case:
    """One test: input and expected output, or `code`, which raises if the test fails."""

    input: str
    output: str = ""
    code: str = ""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      task_id: `split/family/name`.
      family: difficulty band or source, for tables.
      statement: what the agent reads.
      public: cases whose outcome is shown.
      judged: cases that decide, public ones first if they decide, too.
      prelude: source that runs before a submission (the imports of a HumanEval prompt).
      stub: signature and docstring, put before a submission that lacks them (HumanEval).
      entry_point: the function that a submission must define, "" for programs.
      checker: source of `check(input, expected, actual) -> bool`; "" compares tokens.
      reference: a solution, "" if the data has none in Python 3.
      files: (name, descriptor) pairs: files that a submission may open instead of standard streams.
      where: file and record, for errors; not compared.
    """

    task_id: str
    family: str
    statement: str
    public: tuple[Case, ...]
    judged: tuple[Case, ...]
    prelude: str = ""
    stub: str = ""
    entry_point: str = ""
    checker: str = ""
    reference: str = ""
    files: tuple[tuple[str, int], ...] = ()
    where: str = dataclasses.field(default="", compare=False)


def file_split(path: str) -> str:
    """The split named in a file's name, or ""."""
    named = [s for s in SPLITS if re.search(rf"(?<![a-z]){s}(?![a-z])", Path(path).name.lower())]
    return named[0] if len(named) == 1 else ""


# -- layouts ---------------------------------------------------------------------------------------
def load(
    path: str, layout: str, num_tests: int, num_public: int, first: int = 0
) -> Iterator[tuple[str, Problem]]:
    """(split, problem) pairs of one file.

    Args:
      path: the file.
      layout: one of LAYOUTS.
      num_tests: the first N tests decide; 0: all.
      num_public: the first N public tests are shown; 0: all.
      first: number of the file's first record, for layouts that number tasks across files.

    Raises:
      EnvDataError: names file, record, field, value and what is allowed.
    """
    for record in read_records(path):
        loaded = _READERS[layout](record, path, first)
        if loaded is not None:
            split, problem = loaded
            yield (
                split,
                dataclasses.replace(
                    problem,
                    public=problem.public[: num_public or None],
                    judged=problem.judged[: num_tests or None],
                    where=record.where,
                ),
            )


def _read_own(record: Record, path: str, first: int) -> tuple[str, Problem]:
    split, band, name = record.name("split"), record.name("band"), record.name("name")
    if split not in SPLITS:
        raise record.error("split", f"one of {', '.join(SPLITS)}")
    cases = _cases(record, "tests")
    if not cases:
        raise record.error("tests", "a list of at least one test")
    allowed = f"a number from 1 to {len(cases)}, the number of tests"
    num_public = record.whole("num_public", 1, len(cases), allowed)
    example = cases[0]
    statement = (
        f"{record.text('statement')}\n\nExample input:\n{example.input.rstrip()}\n\n"
        f"Example output:\n{example.output.rstrip()}"
    )
    return split, Problem(
        f"{split}/{band}/{name}", band, statement, cases[:num_public], cases,
        checker=record.text("checker", ""), reference=record.text("reference", ""),
    )  # fmt: skip


def _cases(record: Record, *names: str) -> tuple[Case, ...]:
    """Tests in either form: a list of {input, output}, or an object with two lists."""
    field = next((n for n in names if n in record.fields), names[0])
    value = record.fields.get(field)
    if value is None:  # protobuf's JSON form omits empty fields
        return ()
    if isinstance(value, Mapping):
        inputs, outputs = value.get("input"), value.get("output")
        if not isinstance(inputs, list) or not isinstance(outputs, list):
            raise record.error(field, "an object with the lists input and output")
        if len(inputs) != len(outputs):
            raise record.error(field, "lists input and output of the same length")
        pairs = list(zip(inputs, outputs, strict=True))
    elif isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
        pairs = [(v.get("input", ""), v.get("output", "")) for v in value]
    else:
        raise record.error(field, "a list of {input, output} or an object with two lists")
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise record.error(field, "inputs and outputs that are texts")
    return tuple(Case(*pair) for pair in pairs)


def _read_codecontests(record: Record, path: str, first: int) -> tuple[str, Problem]:
    """The hub's rows, and contest_problem.proto in protobuf's JSON form."""
    split = record.fields.get("split") or file_split(path)
    if split not in SPLITS:
        raise EnvDataError(
            f"{record.where}: neither its field 'split' nor the file's name says which split it"
            f" belongs to: one of {', '.join(SPLITS)}"
        )
    public = _cases(record, "public_tests", "publicTests")
    judged = public + _cases(record, "private_tests", "privateTests")
    judged += _cases(record, "generated_tests", "generatedTests")
    if not judged:
        raise record.error("public_tests", "tests, here or in private_tests or generated_tests")
    source = record.fields.get("source", 0)
    if type(source) is int and 0 <= source < len(_SOURCES) and _SOURCES[source]:
        source = _SOURCES[source]
    elif not isinstance(source, str) or source.lower().removesuffix("_source") not in _SOURCES:
        raise record.error("source", "a Source of contest_problem.proto")
    source = source.lower().removesuffix("_source")
    return split, Problem(
        f"{split}/{source}/{first + record.number:05d}", source, record.text("description"), public,
        judged, reference=_python_solution(record), files=_named_files(record),
    )  # fmt: skip


def _named_files(record: Record) -> tuple[tuple[str, int], ...]:
    """The files that a problem uses instead of standard input and output."""
    pairs = []
    for number, names in enumerate((("input_file", "inputFile"), ("output_file", "outputFile"))):
        field = next((n for n in names if record.fields.get(n) is not None), None)
        if field and (name := record.text(field, "")):
            pairs.append((name, number))
    return tuple(pairs)


def _python_solution(record: Record) -> str:
    solutions = record.fields.get("solutions") or []
    if isinstance(solutions, Mapping):
        columns = [solutions.get(name, []) for name in ("language", "solution")]
        if not all(isinstance(c, list) for c in columns) or len(columns[0]) != len(columns[1]):
            raise record.error("solutions", "a list, or the lists language and solution, as long")
        pairs = zip(*columns, strict=True)
    elif isinstance(solutions, list) and all(isinstance(s, Mapping) for s in solutions):
        pairs = ((s.get("language"), s.get("solution")) for s in solutions)
    else:
        raise record.error("solutions", "a list of {language, solution} or two lists")
    return next((str(text) for language, text in pairs if language in _PYTHON3), "")


def _assertion(source: str, setup: str) -> Case:
    """An assert as a case. If it compares with ==, a failure shows the actual value."""
    code = source
    try:
        (statement,) = ast.parse(source).body
        test = statement.test
        if isinstance(test, ast.Compare) and [type(op) for op in test.ops] == [ast.Eq]:
            left, right = ast.unparse(test.left), ast.unparse(test.comparators[0])
            code = f"assert (_got := {left}) == ({right}), {_GOT}"
    except (SyntaxError, ValueError, AttributeError):
        pass  # keep the assert as it is
    return Case(source, code=f"{setup}\n{code}\n")


def _read_mbpp(record: Record, path: str, first: int) -> tuple[str, Problem] | None:
    number = record.whole("task_id", 1, 974, "a number from 1 to 974")
    split = next((s for s, numbers in _MBPP_SPLITS.items() if number in numbers), None)
    if split is None:
        return None
    setup = "\n".join([record.text("test_setup_code", ""), *record.texts("test_imports", ())])
    asserts = record.texts("test_list")
    if not asserts:
        raise record.error("test_list", "a list of at least one assert")
    try:
        cases = tuple(_assertion(source, setup) for source in asserts)
    except _TOO_DEEP:
        raise record.error("test_list", "asserts that are not nested so deeply") from None
    text = record.text("text" if "text" in record.fields else "prompt")
    statement = f"{text}\nThe program must pass:\n" + "\n".join(asserts)
    judged = cases
    if isinstance(record.fields.get("test"), str):  # MBPP+ has many more tests in one text
        judged += (Case("the tests of MBPP+", code=record.text("test")),)
    return split, Problem(
        f"{split}/mbpp/{number:03d}", "mbpp", statement, cases, judged,
        reference=record.text("code", ""),
    )  # fmt: skip


def _read_humaneval(record: Record, path: str, first: int) -> tuple[str, Problem]:
    name, prompt, entry = record.name("task_id"), record.text("prompt"), record.text("entry_point")
    definition = re.search(rf"^def {re.escape(entry)}\b", prompt, re.MULTILINE)
    if definition is None:
        raise record.error("prompt", f"source that defines {entry}, the entry_point")
    try:
        examples = _examples(prompt, entry)
    except _TOO_DEEP:
        raise record.error("prompt", "source that is not nested so deeply") from None
    return "test", Problem(
        f"test/humaneval/{name.rpartition('/')[2]}", "humaneval",
        f"Complete this function:\n\n{prompt.strip()}", examples,
        (Case("", code=f"{record.text('test')}\ncheck({entry})\n"),),
        prelude=prompt[: definition.start()], stub=prompt, entry_point=entry,
        reference=record.text("canonical_solution", ""),
    )  # fmt: skip


def _examples(prompt: str, entry: str) -> tuple[Case, ...]:
    """The docstring's `>>>` examples that are expressions with a value.

    Examples that print nothing are set-up: they run before the examples that follow them.
    """
    try:
        functions = [n for n in ast.parse(prompt).body if isinstance(n, ast.FunctionDef)]
        text = next((ast.get_docstring(f) for f in functions if f.name == entry), None)
        examples = doctest.DocTestParser().get_examples(text or "")
    except (SyntaxError, ValueError):
        return ()
    cases, before = [], ""
    for example in examples:
        want, source = example.want.strip(), example.source.strip()
        try:
            if not want:
                before += ast.unparse(ast.parse(source)) + "\n"
                continue
            # Parsed and unparsed: a comment at the end would comment out what follows it.
            made = ast.unparse(ast.parse(source, mode="eval"))
            ast.literal_eval(want)
            expected = ast.unparse(ast.parse(want, mode="eval"))
        except (SyntaxError, ValueError, TypeError):  # TypeError: {[]}
            continue
        code = f"{before}assert (_got := ({made})) == ({expected}), {_GOT}\n"
        cases.append(Case(f"{source} gives {want}", code=code))
    return tuple(cases)


_READERS = {
    "own": _read_own,
    "codecontests": _read_codecontests,
    "mbpp": _read_mbpp,
    "humaneval": _read_humaneval,
}
