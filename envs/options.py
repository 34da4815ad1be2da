"""Options of an environment: a frozen dataclass whose values are checked when it is made.

@dataclasses.dataclass(frozen=True)
class GuessOptions(Options):
    largest: int = 100
    hints: str = one_of("words", ("words", "none"))

    def check(self) -> None:
        self.require("largest", self.largest > 1, "an integer above 1")
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import reprlib
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from envs.errors import EnvDataError

FilePath = Annotated[str, "path"]  # the type of an option that takes a path; "" is none

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_REPR.maxlevel = 3


def one_of(default: Any, allowed: Sequence[str]) -> Any:
    """A field whose value, or each of whose values if it is a tuple, is one of `allowed`."""
    return dataclasses.field(default=default, metadata={"allowed": tuple(allowed)})


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of all options; a field is an option, its default the value of a run that sets none.

    A field's type is bool, int, float (finite), str, FilePath, tuple[X, ...] or tuple[X, Y]. Values
    of other types are refused, except that lists become tuples, `Path`s texts, and integers floats.

    Raises:
      EnvDataError: a value is not allowed; the message names the option.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            given, kind = getattr(self, field.name), _types(type(self))[field.name]
            allowed = field.metadata.get("allowed")
            value = _converted(kind, given)
            right = value is not None
            if right and allowed is not None:
                right = set([value] if isinstance(value, str) else value) <= set(allowed)
            check_option(field.name, given, right, _described(kind, allowed))
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Raises EnvDataError if a value is out of range; a subclass overrides it."""

    def require(self, option: str, right: bool, allowed: str) -> None:
        """Raises EnvDataError about `option` unless `right`; `allowed` completes "must be"."""
        check_option(option, getattr(self, option), right, allowed)


def make_options(name: str, kind: type[Options], values: Mapping[str, Any]) -> Options:
    """The options `kind` of the environment `name` with the given values.

    Raises:
      EnvDataError: an unknown option, or a value that is not allowed.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for option in values:
        if option not in known:
            raise EnvDataError(
                f"{name} has no option {option!r}; it has {', '.join(['horizon', *known])}"
            )
    return kind(**values)


def check_horizon(horizon: Any) -> int:
    """`horizon`, if it is an integer of at least 1; else EnvDataError."""
    if type(horizon) is not int or horizon < 1:
        raise EnvDataError(f"env.horizon = {shown(horizon)}: must be an integer of at least 1 step")
    return horizon


def check_option(option: str, value: Any, right: bool, allowed: str) -> None:
    """Raises EnvDataError about `env.options.<option>` unless `right`."""
    if not right:
        raise EnvDataError(f"env.options.{option} = {shown(value)}: must be {allowed}")


def shown(value: Any) -> str:
    """A value as error messages show it: at most about 120 characters."""
    try:
        text = _REPR.repr(value)
    except ValueError:  # Python's repr refuses integers of more than 4,300 digits
        text = f"{type(value).__name__} of more than 4300 digits"
    return text if len(text) <= 120 else text[:120] + "..."


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _converted(kind: Any, value: Any) -> Any:
    """`value` as a `kind`, or None if it is of another type."""
    if typing.get_origin(kind) is tuple:
        return _converted_tuple(typing.get_args(kind), value)
    if kind == FilePath:
        return os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if kind is float and type(value) is int:
        value = _as_float(value)
    right = type(value) is kind and (kind is not float or math.isfinite(value))
    return value if right else None


def _converted_tuple(kinds: tuple[Any, ...], value: Any) -> tuple[Any, ...] | None:
    if not isinstance(value, list | tuple):
        return None
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return None
    parts = tuple(map(_converted, kinds, value))
    return None if None in parts else parts


def _as_float(value: int) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


_ONE = {bool: "True or False", int: "an integer", float: "a finite number", str: "a text",
        FilePath: "a path, or '' for none"}  # fmt: skip
_MANY = {bool: "flags", int: "integers", float: "finite numbers", str: "texts", FilePath: "paths"}


def _described(kind: Any, allowed: Sequence[str] | None) -> str:
    """What a field takes, to complete "must be"."""
    listed = ", ".join(value or "''" for value in allowed or ())
    if typing.get_origin(kind) is not tuple:
        return f"one of {listed}" if allowed is not None else _ONE[kind]
    first, *rest = typing.get_args(kind)
    if allowed is not None:
        return f"a list out of {listed}"
    if rest == [Ellipsis]:
        return f"a list of {_MANY[first]}"
    return f"a list of {1 + len(rest)} {_MANY[first]}"
