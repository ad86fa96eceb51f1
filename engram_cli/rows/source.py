"""Uniform read access to the rows of a table, bundle, statistics folder or checkpoint.

Needs NumPy only, since the runtime imports it. `rows.gather` implements it over spans of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.hashing.layout import HashLayout

# The parts of a layer. Scales: of quantised rows. Hits: how often a corpus looked each row up.
ROWS, SCALES, HITS = "rows", "scales", "hits"
FULL = 2**32 - 1  # a counter of hits that reached this stays there


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows `first` to `first + rows` of a part of a layer: in `file`, from byte `begin` on.

    `stride`: bytes from one row to the next, 0 where the rows follow each other without a gap.
    """

    file: Path
    begin: int
    first: int
    rows: int
    stride: int = 0


class StoredSource(Protocol):
    """The layout of an artifact's rows, and the rows as stored: what a patch needs of its base.

    `layout` is bound to its vocabulary map; `layers` are those of its layers that have rows here,
    each `layout.layer(n).rows` high. A row is `dim` values stored as `dtype`; both are None for an
    artifact that has no vectors. `digest` names the content, None where the format has no such
    thing.
    """

    @property
    def path(self) -> Path: ...
    @property
    def layout(self) -> HashLayout: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def dim(self) -> int | None: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def digest(self) -> str | None: ...

    def stored(self, layer: int, ids: ArrayLike) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the rows [n, width] at `ids` [n] as stored, and their scales.

        Scales are [n, scales a row], [1] for a layer that has one, None for unscaled dtypes.
        """


class RowSource(StoredSource, Protocol):
    """The rows of an artifact, of whatever format. All methods may run in threads.

    `format` is the name under which the format is registered. Methods raise InputError for a layer,
    a part or rows that are not there, ArtifactError for a file that cannot be read.
    """

    @property
    def format(self) -> str: ...

    @property
    def has_hits(self) -> bool:
        """Whether there is a number of hits for each row."""

    def spans(self, layer: int, part: str = ROWS) -> tuple[Span, ...]:
        """Return the spans of files that hold a part of a layer, ascending.

        Empty where the part is not there, or where its bytes are not in files as they are.
        """

    def chunks(self, layer: int, part: str = ROWS) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, [n, ...] as stored, mapped and read-only) for each span of a part.

        A layer that has one scale for all rows yields (0, [1]) for its scales.
        """

    def lines(self, layer: int, part: str, first: int, count: int) -> NDArray[Any]:
        """Read `count` rows of a part from `first` on, as stored: [count, ...].

        The scales of a layer that has one for all rows are [1], whatever is asked for.
        """

    def vectors(self, layer: int, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the rows at `ids` [n], in any order, as float32[n, dim]."""

    def read(self, layer: int, first: int, values: NDArray[np.float32]) -> None:
        """Read the rows from `first` on into `values` float32[n, dim], contiguous."""

    def hits_at(self, layer: int, ids: ArrayLike) -> NDArray[np.uint32]:
        """Return the hits of the rows at `ids` [n] as uint32[n]."""
