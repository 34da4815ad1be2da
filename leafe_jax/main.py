"""Command line: flags only; the program is leafe_jax/experiment.py.

python -m leafe_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
import traceback

from leafe_jax.startup import keep_freed_memory, prefer_cpu


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


def _parse(argv: list[str]):
    """The flags' values; raises _BadFlags."""
    from absl import flags

    values = flags.FlagValues()
    _define_flags(values)
    try:
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
            notes.addHandler(logging.StreamHandler())
    # Checkpoints and TensorBoard are written by threads, whose complaints about a full disk would
    # come as tracebacks of their own, before and after ours.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    complain = threading.excepthook
    threading.excepthook = lambda args: None if _disk_full(args.exc_value) else complain(args)


def main(argv: list[str]) -> int:
    """Runs an experiment; 0 on success, 2 with one line on stderr for what the user can mend."""
    # Before jax is imported: compiled programs are kept, so the second run starts at once.
    cache = os.path.join(os.path.expanduser("~"), ".cache", "leafe_jax", "xla")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if prefer_cpu():
        os.environ["JAX_PLATFORMS"] = "cpu"
    keep_freed_memory()
    try:
        values = _parse(argv)
    except _BadFlags as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _set_up_notes()

    from envs.base import EnvDataError
    from leafe_jax import experiment, processes, sweep
    from leafe_jax.errors import UserError

    config, workdir = values["config"].value, values["workdir"].value
    try:
        processes.join(
            *(values[name].value for name in ("coordinator", "num_processes", "process_id")),
            values["join_timeout"].value,
        )
        if not processes.first():
            logging.getLogger("leafe_jax").setLevel(logging.WARNING)
            logging.getLogger("envs").setLevel(logging.WARNING)
        (sweep if "sweep" in config else experiment).run(config, workdir)
    except (UserError, EnvDataError) as error:
        processes.stop(str(error))
        return 2
    except Exception as error:
        message = _explain(error, workdir)
        if message is None:
            if processes.several():
                time.sleep(1)  # if it comes of another's end, that is said now, and this is not
                traceback.print_exc()
                processes.stop(f"{type(error).__name__}: {error}".splitlines()[0], code=1)
            raise
        processes.stop(message)
        sys.stderr.flush()
        # The writers' threads would wait for space, and then complain, at a normal exit.
        os._exit(2)
    except KeyboardInterrupt:
        if processes.several():
            processes.stop("interrupted", code=130)
        raise
    finally:
        processes.leave()
    return 0


def _explain(error: Exception, workdir: str) -> str | None:
    """One line for what a user can mend, of errors that are not ours; None for a bug."""
    if _disk_full(error):
        return (
            f"--workdir={workdir}: the disk is full; finished work is kept: free space, run again"
        )
    if "RESOURCE_EXHAUSTED" in str(error):  # training has an error of its own for this
        return (
            "a device is out of memory while sampling: raise sampler.tensor, or lower"
            f" sampler.num_pages, num_slots or max_len ({str(error).splitlines()[0]})"
        )
    return None


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a full disk (Orbax passes on a text only)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv))
