"""Command line: flags only; the program is leafe_jax/experiment.py.

python -m leafe_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import errno
import glob
import os
import sys

_DEVICE_FILES = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def main(argv: list[str]) -> int:
    """Runs an experiment; 0 on success, 2 with one line on stderr for what the user can mend."""
    # Before jax is imported: compiled programs are kept, so the second run starts at once.
    cache = os.path.join(os.path.expanduser("~"), ".cache", "leafe_jax", "xla")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    # With libtpu installed (the tests need it) jax looks for a TPU, over the network too, and
    # complains at length; without any device file there is nothing to look for.
    if not any(glob.glob(pattern) for pattern in _DEVICE_FILES):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")

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
    except KeyError as error:  # ml_collections' own words: which field, and what it may have meant
        return _fail("no such config field: " + " ".join(str(error.args[0]).split()))
    except (flags.Error, AttributeError, TypeError, ValueError, OSError, ImportError) as error:
        # A config file's own complaint comes wrapped in its traceback: the last line says it.
        return _fail(" ".join(str(error).strip().splitlines()[-1].split()))

    from leafe_jax import experiment

    try:
        experiment.run(config, workdir)
    except (UserError, EnvDataError) as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _fail(f"--workdir={workdir}: the disk is full; finished work is kept, run again")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
