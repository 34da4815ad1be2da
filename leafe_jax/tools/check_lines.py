"""The lines that tools.check prints, and the parts of the check that they come from. No jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.runtime.memory import is_out_of_memory

VERDICTS = ("ok", "warning", "failed")  # from best to worst
PREFIX = "check-line: "  # of a line on a part's standard output; libraries print there, too

OWN_FAULT = "this is a fault of the program: report it with the whole line and the output of --json"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the check.

    Attributes:
      name: what was checked.
      verdict: one of VERDICTS.
      text: what was found.
      advice: what to do; "" if the verdict is ok.
      figures: name -> JSON value.
    """

    name: str
    verdict: str
    text: str
    advice: str = ""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the check, which runs in a process of its own.

    Attributes:
      name: machine, attention, pages, log-probabilities, sampler, train or checkpoint.
      shape: one of known_models.SHAPES; "" where none is needed.
      workload: one of workloads.WORKLOADS, for the sampler.
      directory: where checkpoints are written; "" is the system's directory for temporary files.
    """

    name: str
    shape: str = ""
    workload: str = ""
    directory: str = ""

    @property
    def title(self) -> str:
        """The name of the part's line, if it has only one."""
        shown = (self.shape, self.workload) if self.name in ("sampler", "train") else ()
        return " ".join(filter(None, (self.name, *shown)))


def worst(verdicts: list[str]) -> str:
    """The worst of the verdicts; ok if there are none."""
    return max(verdicts, key=VERDICTS.index, default="ok")


def guarded(name: str, advice: str, memory_advice: str, work: Callable[[], Line]) -> Line:
    """The line that `work` returns; if it raises, a line that says so.

    Args:
      name: of the line.
      advice: what to do if it raises.
      memory_advice: what to do if a device runs out of memory.
      work: makes the line.
    """
    try:
        return work()
    except UserError as error:
        return Line(name, "failed", str(error), advice)
    except Exception as error:
        text = " ".join(str(error).split())[:300] or "no message"
        if is_out_of_memory(error) or isinstance(error, MemoryError):
            return Line(name, "failed", f"a device is out of memory: {text}", memory_advice)
        return Line(name, "failed", f"{type(error).__name__}: {text}", advice)
