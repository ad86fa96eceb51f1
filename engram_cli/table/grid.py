"""Divides an array into chunk files: computes which rows lie in which file, for writer and reader.

A chunk file holds whole rows, one after another, little-endian and uncompressed. The last one is as
long as the others, padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.files import canonical_json, sha256_bytes
from engram_cli.rows.source import ROWS, Span

TARGET_CHUNK_BYTES = 128 * 2**20
HITS_TYPE: np.dtype[Any] = np.dtype("<u4")
LOOKUP_TYPE: np.dtype[Any] = np.dtype("<i4")
PROJECTION_TYPE: np.dtype[Any] = np.dtype("<f4")
LOOKUP = "lookup"
_NOT_CONTENT = ("digest", "complete", "tool_version")
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

    def spans(self, store: Path) -> list[Span]:
        """Return the spans of the chunk files of the store at `store`."""
        found = []
        for index in range(self.chunks):
            first, rows = self.span(index)
            found.append(Span(file=store / self.file(index), begin=0, first=first, rows=rows))
        return found


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


def array_name(layer: int, part: str = ROWS) -> str:
    """Return the name of the array that holds a part of a layer: its rows, scales or hits."""
    return str(layer) if part == ROWS else f"{part}/{layer}"


def projection_array(layer: int) -> str:
    """Return the name of the array of the projections of a layer's embeddings."""
    return f"projection/{layer}"


def content_digest(attributes: Mapping[str, Any]) -> str:
    """Return the digest that names a table: of all attributes that decide its content."""
    content = {key: value for key, value in attributes.items() if key not in _NOT_CONTENT}
    return sha256_bytes(b"engram table 1\n", canonical_json(content))
