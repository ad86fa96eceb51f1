"""Stores the state of objects that count as named arrays, and checks arrays that are read back.

Arrays that are read back come from a file, so each is checked for its type and shape before it is
used. Values that a kernel relies on are checked where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engram_cli.errors import ArtifactError

State: TypeAlias = dict[str, NDArray[Any]]


def nested(**parts: Mapping[str, NDArray[Any]]) -> State:
    """Return the states of parts as one: "part/name"."""
    return {f"{name}/{key}": array for name, part in parts.items() for key, array in part.items()}


def numbered(parts: list[State]) -> State:
    """Return the states of numbered parts as one."""
    return nested(**{str(index): part for index, part in enumerate(parts)})


def part_of(state: State, name: str | int) -> State:
    """Return the state of one part."""
    begin = f"{name}/"
    return {key[len(begin) :]: array for key, array in state.items() if key.startswith(begin)}


def scalar(value: int, dtype: DTypeLike = np.int64) -> NDArray[Any]:
    """Return a number as an array."""
    return np.array([value], dtype=dtype)


def take(state: State, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a writable copy of an array; -1 in `shape`: any length. Raises ArtifactError."""
    array = state.get(name)
    if array is None or array.dtype != np.dtype(dtype) or array.ndim != len(shape):
        raise unsound(name)
    check(all(want in (-1, has) for want, has in zip(shape, array.shape, strict=True)), name)
    return np.array(array, order="C")


def take_into(state: State, name: str, own: NDArray[Any]) -> None:
    """Overwrite `own` with an array of its type and shape. Raises ArtifactError."""
    array = state.get(name)
    if array is None or array.dtype != own.dtype or array.shape != own.shape:
        raise unsound(name)
    np.copyto(own, array)


def take_scalar(state: State, name: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """Return a number from `least` to `most`. Raises ArtifactError."""
    array = state.get(name)
    if array is None or array.dtype.kind not in "iu" or array.shape != (1,):
        raise unsound(name)
    value = int(array[0])
    check(least <= value <= most, name)
    return value


def check(sound: bool, name: str) -> None:
    """Raises ArtifactError unless `sound`."""
    if not sound:
        raise unsound(name)


def unsound(name: str) -> ArtifactError:
    """Return the error for an array that counting did not write."""
    return ArtifactError(f"'{name}' is not what counting leaves", "count again with --restart")
