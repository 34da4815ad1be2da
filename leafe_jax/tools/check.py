"""Checks a machine before the first run: devices, numbers, speed, memory and disk, in a few minutes.

    python -m leafe_jax.tools.check [--shape=0.5b,7b] [--only=attention,train] [--json]

prints a line for each thing that was checked: its verdict (ok, warning or failed), what was found, and
what to do if it is not ok. docs/TPU.md and docs/GPU.md show the expected lines. It needs no network and no
model: weights are random and made on the device. Without an accelerator it runs in a tiny form that takes a
minute or two.

The exit code is 0 if no line failed, 1 if one did, 2 after one line on stderr for bad flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from leafe_jax.errors import UserError
from leafe_jax.runtime import console, startup
from leafe_jax.tools.check_lines import OWN_FAULT, PREFIX, Line, Part, worst

_NAMES = ("attention", "pages", "log-probabilities", "sampler", "train", "checkpoint")
_WORKLOADS = ("plain", "turns", "branches", "ragged")
_DIED = (
    "read the last line of its output in the text; signal 9 means that the machine ran out of host memory"
    " (dmesg), others that a library crashed: update the driver and jax, and run the check again"
)
_HANGS = (
    "raise --limit if the machine is slow; on a TPU slice of several hosts start the check on all of them"
    " at the same time (gcloud ... --worker=all); end other programs that hold the device"
)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked.

    Raises:
      UserError: a flag is wrong.
    """
    parser = _Parser(
        prog="python -m leafe_jax.tools.check", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--shape", default="", help="models to measure: 0.5b,7b; without an accelerator tiny"
    )
    parser.add_argument(
        "--workload", default="", help=f"of {', '.join(_WORKLOADS)}; plain,branches (CPU: turns)"
    )
    parser.add_argument(
        "--only", default=",".join(_NAMES), help="parts to run beside the machine; all of them"
    )
    parser.add_argument(
        "--directory", default="", help="existing directory for a checkpoint; the system's for"
        " temporary files",
    )  # fmt: skip
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of a part; 900")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args(argv)
    options.shape = _chosen("shape", options.shape, _shapes() if options.shape else ())
    options.workload = _chosen("workload", options.workload, _WORKLOADS)
    options.only = _chosen("only", options.only, _NAMES)
    if options.directory and not Path(options.directory).is_dir():
        raise UserError(f"--directory={options.directory}: must be an existing directory")
    if not options.limit > 0:
        raise UserError(f"--limit={options.limit}: must be above 0 seconds")
    return options


def _shapes() -> tuple[str, ...]:
    from leafe_jax.tools.known_models import SHAPES  # imports jax, but starts no device

    return SHAPES


def _chosen(flag: str, text: str, allowed: Sequence[str]) -> list[str]:
    """The names in a comma-separated flag.

    Raises:
      UserError: a name is not allowed.
    """
    names = text.split(",") if text else []
    for name in names:
        if name not in allowed:
            raise UserError(f"--{flag}={text}: {name!r} must be one of {', '.join(allowed)}")
    return list(dict.fromkeys(names))


def _parts(options: argparse.Namespace, platform: str) -> list[Part]:
    """The parts to run after the machine.

    Args:
      options: the flags.
      platform: jax's name for it.
    """
    on_cpu = platform == "cpu"
    shapes = options.shape or (["tiny"] if on_cpu else ["0.5b", "7b"])
    workloads = options.workload or (["turns"] if on_cpu else ["plain", "branches"])
    every = [Part(name) for name in ("attention", "pages", "log-probabilities")]
    for shape in shapes:
        every += [Part("sampler", shape, workload) for workload in workloads]
        every.append(Part("train", shape))
    every.append(Part("checkpoint", "tiny" if on_cpu else "small", directory=options.directory))
    return [part for part in every if part.name in options.only]


def run_part(part: Part, limit: float) -> list[Line]:
    """The lines of a part, which runs in a process of its own.

    A part that dies, takes too long or prints nothing gets a line that says so.

    Args:
      part: what to run.
      limit: seconds after which it is ended.
    """
    command = [
        sys.executable, "-m", "leafe_jax.tools.check_part", json.dumps(dataclasses.asdict(part)),
    ]  # fmt: skip
    # A process group of its own, so that a library's helper processes end with it.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    late = False
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        late = True
        _end(process)
        out, err = process.communicate()
    except BaseException:
        _end(process)
        raise
    lines = [
        Line(**json.loads(text.removeprefix(PREFIX)))
        for text in out.splitlines()
        if text.startswith(PREFIX)
    ]
    if late:
        lines.append(Line(part.title, "failed", f"no end after {limit:g} s", _HANGS))
    elif process.returncode or not lines:
        last = next((x.strip() for x in reversed(err.splitlines()) if x.strip()), "no output")
        text = f"its process ended {_how(process.returncode)}: {last[:300]}"
        advice = _DIED if process.returncode < 0 else OWN_FAULT
        lines.append(Line(part.title, "failed", text, advice))
    return lines


def _end(process: subprocess.Popen) -> None:
    """Kills a part's process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _how(code: int) -> str:
    return f"with signal {-code}" if code < 0 else f"with code {code}"


def check(
    options: argparse.Namespace, say: Callable[[Line], None]
) -> tuple[list[dict[str, Any]], str]:
    """(all lines with their seconds, the worst verdict).

    Args:
      options: the flags.
      say: is called with each line as soon as it is known.
    """
    found: list[dict[str, Any]] = []

    def run(part: Part) -> list[Line]:
        begin = time.monotonic()
        lines = run_part(part, options.limit)
        seconds = (time.monotonic() - begin) / len(lines)
        for line in lines:
            say(line)
            found.append({**dataclasses.asdict(line), "seconds": round(seconds, 2)})
        return lines

    first = run(Part("machine", directory=options.directory))
    if all(line.verdict != "failed" for line in first):  # else nothing could run
        for part in _parts(options, first[0].figures["platform"]):
            run(part)
    return found, worst([line["verdict"] for line in found])


def _show(line: Line) -> None:
    console.say(f"{line.verdict:<8} {line.name}: {line.text}")
    if line.advice:
        console.say(f"         what to do: {line.advice}")


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    console.set_up()
    try:
        options = _parse(argv)
    except UserError as error:
        console.complain(error)
        return 2
    # The parts share small programs, e.g. those that draw weights.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    problem = startup.prepare()  # of the parts' environment, too
    if problem is not None:
        console.complain(problem)
        return 2
    begin = time.monotonic()
    try:
        lines, verdict = check(options, (lambda line: None) if options.json else _show)
    except KeyboardInterrupt:
        console.complain("stopped by SIGINT")
        return 130
    seconds = time.monotonic() - begin
    if options.json:
        result = {"verdict": verdict, "seconds": round(seconds, 1), "lines": lines}
        console.say(json.dumps(result, indent=1))
    else:
        counts = [sum(line["verdict"] == kind for line in lines) for kind in ("warning", "failed")]
        console.say(
            f"{len(lines)} lines in {seconds:.0f} s: {counts[0]} warnings, {counts[1]} failed"
        )
    return 1 if verdict == "failed" else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))  # so that the running part is ended, too
    sys.exit(main(sys.argv[1:]))
