"""Command line: flags only; the program is leafe_jax/run/experiment.py, for a grid leafe_jax/paper/lab.py.

python -m leafe_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import os
import signal
import sys


def _leave(number: int, _) -> None:
    """Of signals that come while nothing has begun, or when everything is done."""
    line = f"stopped by {signal.Signals(number).name}: run the same command again\n"
    os.write(2, line.encode())
    os._exit(130 if number == signal.SIGINT else 75)


if __name__ == "__main__":  # before the imports, which take a while
    for _number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(_number, _leave)

import logging  # noqa: E402
import time  # noqa: E402

from leafe_jax.runtime import console, faults, startup, stopping  # noqa: E402


class _BadFlags(Exception):
    """The message is one line."""


def _define_flags(values) -> None:
    from absl import flags
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, "Config file, e.g. configs/quickstart.py or configs/quickstart.py:smoke.",
        lock_config=True, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "workdir", None, "Directory of the run; made if missing.", flag_values=values
    )
    flags.DEFINE_string(
        "coordinator", None, "Several processes without SLURM or a TPU slice: host:port of process 0.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("num_processes", None, "How many there are.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", flag_values=values)
    flags.DEFINE_float(
        "join_timeout", 300.0, "Seconds to wait for the other processes.", flag_values=values
    )


def _with_path(argument: str) -> str:
    """`--config=quickstart:smoke` with the path of the file that comes with the package.

    config_flags knows paths only, and looks for overrides in the whole command line itself.
    """
    from leafe_jax.run.presets import find_config

    flag, _, value = argument.partition("=")
    name, colon, mode = value.partition(":")
    if flag not in ("--config", "-config") or not name or set(name) & {".", "/", os.sep}:
        return argument
    return f"{flag}={find_config(name)}{colon}{mode}"


def _parse(argv: list[str]):
    """The flags' values; raises _BadFlags."""
    from absl import flags

    values = flags.FlagValues()
    _define_flags(values)
    try:
        argv[:] = [_with_path(argument) for argument in argv]
        rest = values(argv)
        if len(rest) > 1:
            raise _BadFlags(f"unexpected argument {rest[1]!r}; arguments are --name=value")
        for name in ("config", "workdir"):
            if values[name].value is None:
                raise _BadFlags(f"--{name} is missing; see README.md for the commands")
        values["config"].value.keys()  # a config file that cannot be loaded complains on first use
    except AttributeError as error:  # ml_collections says which field, and what may be meant
        text = str(error).replace("\\n", " ").replace("\\'", "'").replace("'", "")
        raise _BadFlags(f"--config has no such field: {text}") from error
    except (flags.Error, TypeError, ValueError, OSError, ImportError) as error:
        # A config file's own complaint comes wrapped in its traceback: the last line says it.
        raise _BadFlags(" ".join(str(error).strip().splitlines()[-1].split())) from error
    return values


def _set_up_notes() -> None:
    for name in ("leafe_jax", "envs"):
        notes = logging.getLogger(name)
        notes.setLevel(logging.INFO)
        notes.propagate = False  # absl has a handler of its own at the root
        if not notes.handlers:
            notes.addHandler(console.Notes())
    # Checkpoints and TensorBoard are written by threads, whose complaints about a full disk would
    # come as tracebacks of their own, before and after ours.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def main(argv: list[str]) -> int:
    """Runs an experiment; 0 on success, 2 with one line on stderr for what the user can fix."""
    console.set_up()
    try:
        values = _parse(argv)
    except _BadFlags as error:
        console.complain(error)
        return 2
    workdir = values["workdir"].value
    problem = startup.prepare()
    if problem is not None:
        console.complain(problem)
        return 2
    _set_up_notes()
    try:
        modules = _load()
        with stopping.handlers(_end):
            code = _run(values, *modules)
    except stopping.Stopped as stopped:
        _end(str(stopped), stopped.code)
    except Exception as error:
        stopped = stopping.requested()
        if stopped is not None:
            _end(str(stopped), stopped.code)
        message = faults.explain(error, workdir)
        if message is None:
            _crash(error)
            raise
        _end(f"error: {message}", 2)
    unwritten = console.unwritten()
    if code == 0 and unwritten is not None:
        console.complain(
            f"standard output: {unwritten}; the run is complete, see --workdir={workdir}"
        )
        return 2
    return code


def _load() -> tuple:
    """The modules that import jax. No signal may raise in here: an extension that is being loaded
    would not survive it, so `_leave` takes them."""
    from leafe_jax.paper import lab
    from leafe_jax.run import experiment
    from leafe_jax.runtime import processes

    return experiment, lab, processes


def _run(values, experiment, lab, processes) -> int:
    from envs.base import EnvDataError
    from leafe_jax.errors import UserError

    config, workdir = values["config"].value, values["workdir"].value
    try:
        processes.join(
            *(values[name].value for name in ("coordinator", "num_processes", "process_id")),
            values["join_timeout"].value,
            run=os.path.basename(os.path.normpath(workdir)),
        )
        if not processes.first():
            logging.getLogger("leafe_jax").setLevel(logging.WARNING)
            logging.getLogger("envs").setLevel(logging.WARNING)
        (lab if lab.is_grid(config) else experiment).run(config, workdir)
        processes.leave()
        return 0
    except (UserError, EnvDataError) as error:
        stopped = stopping.requested()
        if stopped is not None:  # an error that comes after a signal is its doing
            raise stopped from error
        processes.stop(f"error: {error}", 2)
        return 2
    except SystemExit:  # told to stop while training; the state is saved in all processes
        processes.leave()
        raise


def _end(line: str, code: int) -> None:
    """Prints a line and ends the process, and the other ones of the run."""
    processes = sys.modules.get("leafe_jax.runtime.processes")
    if processes is not None and hasattr(processes, "stop"):
        processes.stop(line, code)  # does not return where there are several
    else:
        console.tell(line)
    # The writers' threads would wait for space, and then complain, at a normal exit.
    os._exit(code)


def _crash(error: Exception) -> None:
    """A bug: its traceback is for us; the other processes are told of it."""
    processes = sys.modules.get("leafe_jax.runtime.processes")
    if processes is not None and processes.several():
        time.sleep(1)  # if it comes of another's end, that is said now, and this is not
        console.print_crash(type(error), error, error.__traceback__)
        processes.stop(f"error: {type(error).__name__}: {error}", code=1)


if __name__ == "__main__":
    sys.excepthook = console.print_crash
    sys.exit(main(sys.argv))
