import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# torch's threads spin while they wait, and starve whatever else runs on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compiled programs are kept between runs, as main.py does.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "leafe_jax" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
sys.path.append(str(Path(__file__).parent))  # for tests/scripted.py


def pytest_collection_modifyitems(items):
    """With `-n 2`: files that start whole runs first, so that many short tests fill up the end."""
    items.sort(key=lambda item: "/envs/" in item.nodeid or "/models/" in item.nodeid)
