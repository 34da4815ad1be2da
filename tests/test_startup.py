"""What is settled before jax starts."""

import subprocess
import sys

import pytest

# Frees and asks for 64 MB ten times; prints how many pages came fresh from the system.
CODE = """
import resource, sys
from leafe_jax.startup import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import numpy as np
np.ones(2 ** 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2 ** 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc's malloc")
def test_freed_memory_is_used_again():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, check=True).stdout)
        for how in ("given back", "kept")
    }  # fmt: skip
    assert faults["kept"] * 10 < faults["given back"]
