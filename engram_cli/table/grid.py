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
from numpy.typing import NDArray

from engram_cli.files import canonical_json, sha256_bytes
from engram_cli.rows.source import ROWS, Span

TARGET_CHUNK_BYTES = 128 * 2**20
HITS_TYPE: np.dtype[Any] = np.dtype("<u4")
LOOKUP_TYPE: np.dtype[Any] = np.dtype("<i4")
PROJECTION_TYPE: np.dtype[Any] = np.dtype("<f4")
LOOKUP = "lookup"
SUMS, DOCUMENTS = "sums", "sums/documents"  # of tables that keep sums for updates
_NOT_CONTENT = ("digest", "complete", "tool_version", "patching")
DAMAGED = "see what is wrong with engram verify, then build the table again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedArray:
    """An array `[rows, width]`, or `[rows]` where `width` is None, in chunks of `chunk_rows`.

    `name` is its path in the store: "1" for the rows of layer 1, "scales/1", "hits/1", "lookup".
    With `inner_rows` a chunk file is a shard: inner chunks of so many rows one after another, and
    behind them an index that says where each begins. Rows lie at the same bytes either way.
    """

    name: str
    rows: int
    width: int | None
    dtype: np.dtype[Any]
    chunk_rows: int
    inner_rows: int | None = None

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
        """Bytes of the rows of every chunk file, padding included."""
        return self.chunk_rows * self.row_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes of every chunk file."""
        if self.inner_rows is None:
            return self.chunk_bytes
        return self.chunk_bytes + 16 * (self.chunk_rows // self.inner_rows) + 4

    @property
    def stored_bytes(self) -> int:
        """Bytes of all chunk files, padding included."""
        return self.chunks * self.file_bytes

    def index(self) -> NDArray[np.uint8]:
        """Return the bytes behind the rows of every shard: offset and length of each inner chunk
        as uint64, and the CRC-32C of these; none without inner chunks."""
        if self.inner_rows is None:
            return np.empty(0, dtype=np.uint8)
        import google_crc32c

        size = self.inner_rows * self.row_bytes
        count = self.chunk_rows // self.inner_rows
        pairs = np.empty((count, 2), dtype="<u8")
        pairs[:, 0], pairs[:, 1] = np.arange(count) * size, size
        raw = pairs.tobytes()
        raw += int(google_crc32c.value(raw)).to_bytes(4, "little")
        return np.frombuffer(raw, dtype=np.uint8).copy()

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
    name: str,
    rows: int,
    width: int | None,
    dtype: np.dtype[Any],
    chunk_rows: int | None = None,
    inner_rows: int | None = None,
) -> ChunkedArray:
    """Return an array in chunks of `chunk_rows`; without it, in even chunks of about 128 MiB.

    Even chunks keep the padding below one row for each chunk. With `inner_rows` the chunks are
    shards of whole inner chunks.
    """
    if chunk_rows is None:
        row_bytes = dtype.itemsize * (1 if width is None else width)
        count = max(1, round(rows * row_bytes / TARGET_CHUNK_BYTES))
        chunk_rows = -(-rows // count)
    chunk_rows = min(chunk_rows, rows)
    if inner_rows is not None:
        inner_rows = min(inner_rows, chunk_rows)
        chunk_rows = -(-chunk_rows // inner_rows) * inner_rows
    return ChunkedArray(
        name=name,
        rows=rows,
        width=width,
        dtype=dtype,
        chunk_rows=chunk_rows,
        inner_rows=inner_rows,
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


def half_patched_hint(path: Path) -> str:
    """Return what to do with an artifact whose rows were being patched, which was interrupted."""
    return f"run the same engram patch command again, or: engram patch undo {path}"
