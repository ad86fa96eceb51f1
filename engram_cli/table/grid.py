"""The chunks of an array: which rows lie in which file. Writer and reader share it.

A chunk file holds whole rows, one after another, little-endian and uncompressed. The last one is as
long as the others, padded with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.rows.gather import FileArray
from engram_cli.rows.source import Span

TARGET_CHUNK_BYTES = 128 * 2**20
HITS_TYPE: np.dtype[Any] = np.dtype("<u4")
LOOKUP_TYPE: np.dtype[Any] = np.dtype("<i4")
PROJECTION_TYPE: np.dtype[Any] = np.dtype("<f4")
LOOKUP = "lookup"
DAMAGED = "see what is wrong with engram verify, then build the table again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedArray:
    """An array `[rows, width]`, or `[rows]` where `width` is None, in chunks of `chunk_rows`.

    `name` is its path in the store: "1" for the rows of layer 1, "scales/1", "hits/1", "lookup".
    """

    name: str
    rows: int
    width: int | None
    dtype: np.dtype[Any]
    chunk_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return (self.rows,) if self.width is None else (self.rows, self.width)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """The shape of every chunk."""
        return (self.chunk_rows, *self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * (1 if self.width is None else self.width)

    @property
    def chunks(self) -> int:
        """Number of chunk files."""
        return -(-self.rows // self.chunk_rows)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of every chunk file."""
        return self.chunk_rows * self.row_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of all chunk files, padding included."""
        return self.chunks * self.chunk_bytes

    def file(self, index: int) -> str:
        """Return the path of chunk `index` in the store."""
        return f"{self.name}/c.{index}" + ("" if self.width is None else ".0")

    @property
    def files(self) -> list[str]:
        """The paths of all chunks."""
        return [self.file(index) for index in range(self.chunks)]

    def span(self, index: int) -> tuple[int, int]:
        """Return the first row of chunk `index`, and its number of rows without padding."""
        first = index * self.chunk_rows
        return first, min(self.chunk_rows, self.rows - first)

    def on(self, store: Path) -> FileArray:
        """The array in the chunk files of the store at `store`, none of which is opened yet."""
        spans = []
        for index in range(self.chunks):
            first, rows = self.span(index)
            spans.append(Span(file=store / self.file(index), begin=0, first=first, rows=rows))
        return FileArray(spans, self.dtype, self.shape[1:], DAMAGED)


def chunked(
    name: str, rows: int, width: int | None, dtype: np.dtype[Any], chunk_rows: int | None = None
) -> ChunkedArray:
    """Return an array in chunks of `chunk_rows`; without it, in even chunks of about 128 MiB.

    Even chunks keep the padding below one row for each chunk.
    """
    if chunk_rows is None:
        row_bytes = dtype.itemsize * (1 if width is None else width)
        count = max(1, round(rows * row_bytes / TARGET_CHUNK_BYTES))
        chunk_rows = -(-rows // count)
    return ChunkedArray(
        name=name, rows=rows, width=width, dtype=dtype, chunk_rows=min(chunk_rows, rows)
    )


def row_array(layer: int) -> str:
    """Return the name of the array of a layer's rows."""
    return str(layer)


def scales_array(layer: int) -> str:
    """Return the name of the array of the scales of a layer's rows."""
    return f"scales/{layer}"


def hits_array(layer: int) -> str:
    """Return the name of the array of a layer's hits."""
    return f"hits/{layer}"


def projection_array(layer: int) -> str:
    """Return the name of the array of the projections of a layer's embeddings."""
    return f"projection/{layer}"
