"""Command line: flags only; the program is leafe_jax/experiment.py.

python -m leafe_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading

from leafe_jax.startup import keep_freed_memory, prefer_cpu


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def main(argv: list[str]) -> int:
    """Runs an experiment; 0 on success, 2 with one line on stderr for what the user can mend."""
    # Before jax is imported: compiled programs are kept, so the second run starts at once.
    cache = os.path.join(os.path.expanduser("~"), ".cache", "leafe_jax", "xla")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    if prefer_cpu():
        os.environ["JAX_PLATFORMS"] = "cpu"
    keep_freed_memory()

    from absl import flags
    from ml_collections import config_flags

    from envs.base import EnvDataError
    from leafe_jax.errors import UserError

    values = flags.FlagValues()
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "Config file, e.g. configs/quickstart.py or configs/quickstart.py:smoke.",
        lock_config=True, flag_values=values,
    )  # fmt: skip
    workdir_flag = flags.DEFINE_string(
        "workdir", None, "Directory of the run; made if missing.", flag_values=values
    )
    try:
        rest = values(argv)
        if len(rest) > 1:
            return _fail(f"unexpected argument {rest[1]!r}; only --config and --workdir are taken")
        config, workdir = values[config_flag.name].value, workdir_flag.value
        if config is None or workdir is None:
            missing = "--config" if config is None else "--workdir"
            return _fail(f"{missing} is missing; see README.md for the commands")
        config.keys()  # a config file that cannot be loaded complains on first use
    except AttributeError as error:  # ml_collections says which field, and what may be meant
        text = str(error).replace("\\n", " ").replace("\\'", "'").replace("'", "")
        return _fail(f"--config has no such field: {text}")
    except (flags.Error, TypeError, ValueError, OSError, ImportError) as error:
        # A config file's own complaint comes wrapped in its traceback: the last line says it.
        return _fail(" ".join(str(error).strip().splitlines()[-1].split()))

    from leafe_jax import experiment, sweep

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
    try:
        (sweep if "sweep" in config else experiment).run(config, workdir)
    except (UserError, EnvDataError) as error:
        return _fail(str(error))
    except Exception as error:
        if not _disk_full(error):
            raise
        _fail(
            f"--workdir={workdir}: the disk is full; finished work is kept: free space, run again"
        )
        sys.stderr.flush()
        # The writers' threads would wait for space, and then complain, at a normal exit.
        os._exit(2)
    return 0


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
