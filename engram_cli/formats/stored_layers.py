"""What is stored of each memory of a source: its geometry, its bytes, and where its tensors are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.hashing.layout import UNKNOWN_SCHEME
from engram_cli.hashing.schemes import SCHEMES, first_layer
from engram_cli.rows import DTYPES
from engram_cli.rows.source import ROWS, RowSource


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of a memory: `dtype` as the file names it, `offset` in bytes from the file's start.

    Shards without headers are tensors of their file's name.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """One memory of a source.

    `layer`: the decoder layer, counted from 0; None for a memory at the model's embedding.
    `number`: what the files call it, None where they do not. `rows_per_head`: of each column, by
    order and then head; `rows` are those of the table with its padding. `width` values a row as
    `dtype`, None where no rows were found. `bytes_on_disk`: of rows and scales. `bytes_per_token`:
    that one token reads.
    """

    layer: int | None
    number: int | None
    scheme: str
    orders: tuple[int, ...]
    heads: int
    rows_per_head: tuple[int, ...]
    rows: int
    width: int | None
    dtype: str | None
    bytes_on_disk: int
    bytes_per_token: int
    tensors: tuple[StoredTensor, ...] = ()


def stored_layers(
    source: RowSource, number: Callable[[Any, int], int | None]
) -> tuple[StoredLayer, ...]:
    """Return each layer of a source's layout; `number` says what the files call it."""
    layout, found = source.layout, []
    if layout.scheme == UNKNOWN_SCHEME and not source.layers:
        return ()  # an overlay: its rows belong to another file's table
    at_embedding = layout.scheme in SCHEMES and SCHEMES.load(layout.scheme).at_embedding
    for entry in layout.layers:
        there = entry.layer in source.layers
        dim, dtype = (source.dim, source.dtype) if there else (None, None)
        row_bytes = 0
        if dim is not None and dtype is not None:
            row_bytes = DTYPES.load(dtype).row_bytes(dim)
        tensors: Callable[[int], tuple[StoredTensor, ...]] | None
        tensors = getattr(source, "tensors_of", None)
        found.append(
            StoredLayer(
                layer=None if at_embedding else entry.layer - first_layer(layout.scheme),
                number=number(source, entry.layer),
                scheme=layout.scheme,
                orders=layout.orders,
                heads=layout.heads,
                rows_per_head=entry.moduli,
                rows=entry.rows,
                width=dim,
                dtype=dtype,
                bytes_on_disk=_bytes(source, entry.layer, row_bytes) if there else 0,
                bytes_per_token=row_bytes * layout.columns,
                tensors=() if tensors is None else tensors(entry.layer),
            )
        )
    return tuple(found)


def _bytes(source: RowSource, layer: int, row_bytes: int) -> int:
    """Return the bytes of the rows and scales that are there."""
    spans = source.spans(layer, ROWS)
    rows = sum(span.rows for span in spans) if spans else source.layout.layer(layer).rows
    single = bool(source.dtype) and DTYPES.load(source.dtype or "").of_layer
    return rows * row_bytes + (4 if single else 0)
