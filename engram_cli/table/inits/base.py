"""What an init is: the rows of a layer, any range of them at a time, in float32.

An init that must go through a corpus first is a PassInit: it says which ranges it makes together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.grid import ChunkedArray

Filler = Callable[[int, NDArray[np.float32]], None]
"""Writes the rows from the first one given into float32[n, dim], contiguous; runs in threads."""


Span: TypeAlias = tuple[int, int]
"""The first row of a range, and how many there are."""


class Init(Protocol):
    """Initial rows that depend on the layer and the row alone, so that any fill order is right."""

    @property
    def name(self) -> str:
        """The init's name in the registry."""

    @property
    def parameters(self) -> dict[str, Any]:
        """A JSON value of all that decides the rows."""

    def filler(self, layer: int, dim: int) -> Filler | None:
        """What writes the rows of a layer; None when all of them are zero."""

    def bound(self, layer: int, dim: int) -> float | None:
        """A size that no value of a layer exceeds, for dtypes with one scale a layer.

        None when only the rows can tell.
        """


@runtime_checkable
class InitWithArrays(Init, Protocol):
    """Initial rows with further arrays, which a reader needs to undo what was done to them."""

    def arrays(self, dim: int) -> list[ChunkedArray]:
        """Further arrays of the store."""

    def values(self, array: ChunkedArray) -> NDArray[Any]:
        """The content of one of them."""


@runtime_checkable
class PassInit(InitWithArrays, Protocol):
    """Rows that take work before they can be written, shared by the ranges of a pass."""

    def passes(self, layer: int, dim: int, spans: Sequence[Span]) -> list[list[int]]:
        """The indices of the spans (in order) that each pass makes; no span twice."""

    def prepared(
        self, layer: int, dim: int, spans: Sequence[Span], scratch: Path
    ) -> AbstractContextManager[Filler]:
        """What writes the rows of the spans of a pass, for as long as the context lasts."""
