"""Checks what an environment or simulator replied, before it is used.

A wrong reply (a None observation, a NaN reward) must reach neither a prompt nor a record. The error is
one line with environment, task, step, field and value. NumPy scalars become Python values. Lone
surrogates, which no tokenizer encodes, become U+FFFD.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from envs.errors import EnvDataError

_LARGEST = 1e100  # of a reward: sums of thousands stay finite


def text(where: str, field: str, value: Any) -> str:
    """`value` as a str that can be encoded as UTF-8.

    Raises:
      EnvDataError: it is not a str.
    """
    if not isinstance(value, str):
        raise _wrong(where, field, value, "a text (str)")
    return without_surrogates(value)


def without_surrogates(value: str) -> str:
    """`value` with U+FFFD for each lone surrogate."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
    return str(value)


def number(where: str, field: str, value: Any) -> float:
    """`value` as a float.

    Raises:
      EnvDataError: it is not a number, not finite, above 1e100, or not exact as a float.
    """
    found = _python_value(value)
    if isinstance(found, numbers.Real) and not isinstance(found, bool):
        # NaN fails the first comparison, an integer that a float rounds the second.
        if -_LARGEST <= found <= _LARGEST and float(found) == found:
            return float(found)
    raise _wrong(where, field, value, "a finite number of at most 1e100, exact as a float")


def flag(where: str, field: str, value: Any) -> bool:
    """`value` as a bool.

    Raises:
      EnvDataError: it is neither True nor False.
    """
    found = _python_value(value)
    if not isinstance(found, bool):
        raise _wrong(where, field, value, "True or False")
    return found


def info(where: str, value: Any) -> Mapping[str, Any]:
    """`value`, if it is a mapping whose "valid", if present, is a bool.

    Raises:
      EnvDataError: it is not.
    """
    if not isinstance(value, Mapping):
        raise _wrong(where, "info", value, "a mapping")
    if type(value.get("valid", True)) is bool:
        return value
    return {**value, "valid": flag(where, "info['valid']", value["valid"])}


def listed(where: str, value: Any) -> tuple[str, ...] | str:
    """`value`, the result of `prompt_actions`, as texts or one text.

    Raises:
      EnvDataError: it is neither.
    """
    if isinstance(value, str):
        return without_surrogates(value)
    if not isinstance(value, Sequence):
        raise _wrong(where, "prompt_actions", value, "a text or a sequence of texts")
    return tuple(text(where, "prompt_actions", action) for action in value)


def instance(where: str, field: str, value: Any, kind: type) -> Any:
    """`value`, if it is a `kind`.

    Raises:
      EnvDataError: it is not.
    """
    if not isinstance(value, kind):
        raise _wrong(where, field, value, f"a {kind.__name__}")
    return value


def _python_value(value: Any) -> Any:
    """The Python value of a NumPy scalar or 0-d array (NumPy need not be loaded for this)."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _wrong(where: str, field: str, value: Any, allowed: str) -> EnvDataError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:80] + "..."
    return EnvDataError(f"{where}: {field} = {shown}: must be {allowed}")
