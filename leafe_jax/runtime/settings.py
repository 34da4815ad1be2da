"""Frozen dataclasses from nested mappings: how a section of a config becomes typed settings.

A section's dataclass is the one place that has its fields, types, defaults and checks. `build` reads the
annotations, so a wrong value is refused by its full name, e.g. `leafe.train.seq_len`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from leafe_jax.errors import UserError

T = TypeVar("T")


def build(kind: type[T], values: Any, where: str) -> T:
    """An instance of the dataclass `kind` with the values of a mapping.

    Fields may be bool, int, float, str, Any, Literal, another dataclass, `tuple[X, ...]`,
    `tuple[X, Y]`, `list[X]`, `dict[str, X]`, or a union of those. An int is taken for a float and becomes
    one, a list for a tuple; True is no int. A field with a default may be missing.

    Args:
      kind: the dataclass; its own checks run in __post_init__.
      values: anything with `items` (a dict, a ConfigDict), or an instance of `kind`, which is returned.
      where: name of the section, for messages; "" for a whole config.

    Raises:
      UserError: a field is unknown, missing or of another type. One line, with the full field name.
    """
    if isinstance(values, kind):
        return values
    if not hasattr(values, "items"):
        raise UserError(f"{where or 'config'} = {_short(values)}: must be a section with fields")
    given = dict(values.items())
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    for name in given:
        if name not in fields:
            raise UserError(
                f"{_join(where, name)}: no such field; there are {', '.join(sorted(fields))}"
            )
    hints = typing.get_type_hints(kind)
    found = {}
    for name, field in fields.items():
        if name in given:
            found[name] = _convert(hints[name], given[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{_join(where, name)}: missing; must be {_allowed(hints[name])}")
    try:
        return kind(**found)
    except UserError as error:  # the dataclass knows its fields by the last part of its name only
        last, text = where.rpartition(".")[2], str(error)
        if last == where or not text.startswith(f"{last}."):
            raise
        raise UserError(where + text.removeprefix(last)) from error


def _join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _allowed(hint: Any) -> str:
    """What a type asks for, in the words of a message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    plain = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    if hint in plain:
        return plain[hint]
    if hint is type(None):
        return "None"
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_allowed, arguments))
    if origin is tuple and arguments[-1:] != (...,):
        return f"a tuple of {len(arguments)}: {', '.join(map(_allowed, arguments))}"
    if origin in (tuple, list):
        return f"a {origin.__name__}, each element {_allowed(arguments[0])}"
    if origin is dict:
        return f"a section, each field {_allowed(arguments[1])}"
    return "a section with fields"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type asks for it, or UserError."""
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if hint is float and type(value) is int:
        return float(value)
    if hint in (bool, int, float, str, type(None)):
        if type(value) is hint:
            return value
        raise _refusal(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if any(type(value) is type(one) and value == one for one in arguments):
            return value
        raise _refusal(hint, value, where)
    convert: dict[Any, Callable[..., Any]] = {
        typing.Union: _union, types.UnionType: _union, tuple: _tuple, list: _list, dict: _dict,
    }  # fmt: skip
    if origin not in convert:
        raise TypeError(f"{where}: no settings can have the type {hint}")
    return convert[origin](hint, arguments, value, where)


def _refusal(hint: Any, value: Any, where: str) -> UserError:
    return UserError(f"{where} = {_short(value)}: must be {_allowed(hint)}")


def _union(hint: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first member that takes the value; a section's own message where only it can be meant."""
    exact = [one for one in arguments if type(value) is one]
    refusals = []
    for one in exact or arguments:
        try:
            return _convert(one, value, where)
        except UserError as error:
            refusals.append((one, error))
    sections = [error for one, error in refusals if dataclasses.is_dataclass(one)]
    if len(sections) == 1 and hasattr(value, "items"):
        raise sections[0]
    raise _refusal(hint, value, where)


def _tuple(hint: Any, arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise _refusal(hint, value, where)
    if arguments[-1:] == (...,):
        arguments = arguments[:1] * len(value)
    if len(arguments) != len(value):
        raise _refusal(hint, value, where)
    pairs = zip(arguments, value, strict=True)
    return tuple(_convert(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(pairs))


def _list(hint: Any, arguments: tuple[Any, ...], value: Any, where: str) -> list[Any]:
    if not isinstance(value, (tuple, list)):
        raise _refusal(hint, value, where)
    return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]


def _dict(hint: Any, arguments: tuple[Any, ...], value: Any, where: str) -> dict[str, Any]:
    if not hasattr(value, "items"):
        raise _refusal(hint, value, where)
    found = {}
    for name, item in value.items():
        if type(name) is not str:
            raise UserError(f"{where}: field {name!r}: must be a text")
        found[name] = _convert(arguments[1], item, _join(where, name))
    return found
