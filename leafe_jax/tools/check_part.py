"""Runs one part of tools.check; tools.check starts it as a process of its own.

    python -m leafe_jax.tools.check_part '{"name": "attention"}'

So a part begins with an empty device and a fresh count of peak memory, and a part that dies takes no other
with it. Each line is printed as soon as it is known, as JSON after check_lines.PREFIX.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator

from leafe_jax.runtime import console, startup
from leafe_jax.tools.check_lines import PREFIX, Line, Part

# Name of a part -> module and function. A part imports only what it needs: seven times everything is long.
_PARTS = {
    "machine": ("check_machine", "machine"),
    "attention": ("check_numbers", "attention"),
    "pages": ("check_numbers", "pages"),
    "log-probabilities": ("check_numbers", "log_probabilities"),
    "sampler": ("check_speed", "sampler"),
    "train": ("check_speed", "train"),
    "checkpoint": ("check_state", "checkpoint"),
}


def run(part: Part) -> Iterator[Line]:
    """The lines of a part."""
    module, function = _PARTS[part.name]
    return getattr(importlib.import_module(f"leafe_jax.tools.{module}"), function)(part)


if __name__ == "__main__":
    console.set_up()
    startup.keep_freed_memory()  # as a run does; the rest of its environment comes from tools.check
    for _line in run(Part(**json.loads(sys.argv[1]))):
        console.say(PREFIX + json.dumps(dataclasses.asdict(_line)))
