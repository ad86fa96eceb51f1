"""The interface of an init: gives the rows of a layer in float32, any range of them at a time.

An init that must read a corpus first is a PassInit: it says which ranges it makes together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.stored_as import StoredReader
from engram_cli.table.grid import ChunkedArray
from engram_cli.table.kept_sums import KeptSums

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
        """All that decides the rows, as a JSON value."""

    def filler(self, layer: int, dim: int) -> Filler | None:
        """Return what writes the rows of a layer; None when all of them are zero."""

    def bound(self, layer: int, dim: int) -> float | None:
        """Return a bound of the absolute values of a layer, for dtypes with one scale a layer.

        None when only the rows can tell.
        """


@runtime_checkable
class InitWithArrays(Init, Protocol):
    """Initial rows with further arrays, which a reader needs to undo what was done to them."""

    def arrays(self, dim: int) -> list[ChunkedArray]:
        """Return further arrays of the store."""

    def values(self, array: ChunkedArray) -> NDArray[Any]:
        """Return the content of one of them."""


@runtime_checkable
class SummedInit(Init, Protocol):
    """Initial rows whose sums may be kept next to them, so that a corpus can change later."""

    def sums_arrays(self, dim: int) -> list[ChunkedArray]:
        """Return the arrays of kept sums; none where none are kept."""

    def kept_sums(self, dim: int) -> KeptSums:
        """Return what describes them."""

    def hashes(self) -> NDArray[np.uint64]:
        """Return the hash of each document of the corpus, ascending."""


@runtime_checkable
class StoredInit(Init, Protocol):
    """Rows that may be there as they are to be stored, so that nothing is encoded."""

    def stored(self) -> StoredReader | None:
        """Return what reads them, None when they must be encoded after all."""

    def layer_scale(self, layer: int) -> NDArray[Any] | None:
        """Return the one scale [1] of a layer that goes with them, None where there is none."""


@runtime_checkable
class PassInit(InitWithArrays, Protocol):
    """Rows that take work before they can be written, shared by the ranges of a pass."""

    def passes(self, layer: int, dim: int, spans: Sequence[Span]) -> list[list[int]]:
        """Return the indices of the spans (in order) that each pass makes; no span twice."""

    def prepared(
        self, layer: int, dim: int, spans: Sequence[Span], scratch: Path
    ) -> AbstractContextManager[Filler]:
        """Return a context that gives what writes the rows of the spans of a pass."""
