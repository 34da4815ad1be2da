import os
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# torch's threads spin while they wait, and starve whatever else runs on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compiled programs are kept between runs, as main.py does; small ones too, of which tests compile many.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "leafe_jax" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
sys.path.append(str(Path(__file__).parent))  # for tests/scripted.py


BEGIN = time.monotonic()


LIMIT = float(os.environ.get("LEAFE_TEST_SECONDS", "inf"))


def pytest_collection_modifyitems(items):
    """With `-n 2`: files that start whole runs first, so that many short tests fill up the end."""
    if LIMIT == float("inf"):  # else the order is the caller's
        items.sort(key=lambda item: "/envs/" in item.nodeid or "/models/" in item.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """LEAFE_TEST_SECONDS: no test begins later than that; those not reached are skipped and named."""
    if time.monotonic() - BEGIN > LIMIT:
        pytest.skip(f"not reached within {LIMIT:.0f} s")
