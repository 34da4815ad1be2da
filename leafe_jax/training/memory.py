"""Devices that run out of memory: one error that says while doing what, and which fields help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from leafe_jax.errors import UserError

DIVIDE = "divide the model over more devices (train.mesh.fsdp, train.mesh.tensor)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a device's lack of memory; libraries pass on its text in errors of theirs."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def needed_for(doing: str, remedy: str) -> Iterator[None]:
    """A context that explains a lack of memory in it.

    Args:
      doing: what is being done, after "while".
      remedy: the fields that help, as a request.

    Raises:
      UserError: a device ran out of memory.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"train: a device is out of memory while {doing}: {remedy}; leafe_jax.plan counts the"
            f" bytes beforehand ({str(error).splitlines()[0]})"
        ) from error
