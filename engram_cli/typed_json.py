"""Reads JSON values into frozen dataclasses, and writes them back as they were.

What is read is untrusted: every value is checked against the type of its field. A field that a file
of an earlier version lacks keeps its default, and keys that no field names are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read_json_as(kind: type[T], value: object, where: str) -> T:
    """Return `value`, plain JSON, as `kind`: a dataclass, a tuple, a union, or a plain type.

    `where` names the value in messages. Raises ValueError for a value of another type.
    """
    return cast(T, _read(kind, value, where))


def as_json(value: object) -> Any:
    """Return a typed value as plain JSON: dataclasses as objects, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: as_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple | list):
        return [as_json(each) for each in value]
    if isinstance(value, Mapping):
        return {key: as_json(each) for key, each in value.items()}
    return value


def _read(kind: Any, value: object, where: str) -> object:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, "a list")
        return tuple(_read(inner[0], each, f"{where}[{at}]") for at, each in enumerate(value))
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        return _read(next(each for each in inner if each is not NoneType), value, where)
    if origin is Literal:
        if value not in inner:
            raise _wrong(where, value, " or ".join(map(repr, inner)))
        return value
    if is_dataclass(kind):
        return _read_object(cast(type, kind), value, where)
    accepted = int | float if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(where, value, f"of type {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(where, value, "a finite number")
    return value


def _read_object(kind: type, value: object, where: str) -> object:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(where, value, "an object")
    given = {}
    for name, own, needed in _fields(kind):
        if name in value:
            given[name] = _read(own, value[name], f"{where} {name}")
        elif needed:
            raise ValueError(f"{where} has no '{name}'")
    return kind(**given)


@cache
def _fields(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    """Return the name and type of each field of a dataclass, and whether it has no default."""
    hints = get_type_hints(kind)
    return tuple(
        (each.name, hints[each.name], each.default is MISSING and each.default_factory is MISSING)
        for each in fields(kind)
    )


def _wrong(where: str, value: object, wanted: str) -> ValueError:
    return ValueError(f"{where} is {repr(value)[:60]}, not {wanted}")
