"""Sources made from other sources: some of the layers, or rows in another dtype.

Both are `RowSource`s, so that a writer needs to know neither. Rows are encoded when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import BLOCK, RowType
from engram_cli.rows.source import HITS, ROWS, SCALES, RowSource, Span

_PIECE_VALUES = 2**18  # float32 values decoded and encoded at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """A `RowSource` with the rows of `source`. A view overrides what it changes."""

    source: RowSource

    @property
    def format(self) -> str:
        """The format of the source."""
        return self.source.format

    @property
    def path(self) -> Path:
        """The path of the source."""
        return self.source.path

    @property
    def layout(self) -> HashLayout:
        """The layout of the source."""
        return self.source.layout

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have rows."""
        return self.source.layers

    @property
    def dim(self) -> int | None:
        """The values of a row."""
        return self.source.dim

    @property
    def dtype(self) -> str | None:
        """How rows are stored."""
        return self.source.dtype

    @property
    def digest(self) -> str | None:
        """None: it names the rows of the source as they are, and all of them."""
        return None

    @property
    def row_type(self) -> RowType:
        """How rows are stored, described."""
        return DTYPES.load(self.dtype or "")

    @property
    def has_hits(self) -> bool:
        """Whether there is a number of hits for each row."""
        return self.source.has_hits

    def spans(self, layer: int, part: str = ROWS) -> tuple[Span, ...]:
        """Return the spans of files that hold a part."""
        return self.source.spans(layer, part)

    def chunks(self, layer: int, part: str = ROWS) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, [n, ...] as stored) in pieces, ascending."""
        return self.source.chunks(layer, part)

    def lines(self, layer: int, part: str, first: int, count: int) -> NDArray[Any]:
        """Read `count` rows of a part from `first` on, as stored: [count, ...]."""
        return self.source.lines(layer, part, first, count)

    def stored(self, layer: int, ids: ArrayLike) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the rows [n, width] at `ids` [n] as stored, and their scales."""
        return self.source.stored(layer, ids)

    def vectors(self, layer: int, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the rows at `ids` [n], in any order, as float32[n, dim]."""
        return self.source.vectors(layer, ids)

    def read(self, layer: int, first: int, values: NDArray[np.float32]) -> None:
        """Read the rows from `first` on into `values` float32[n, dim], contiguous."""
        self.source.read(layer, first, values)

    def hits_at(self, layer: int, ids: ArrayLike) -> NDArray[np.uint32]:
        """Return the hits of the rows at `ids` [n] as uint32[n]."""
        return self.source.hits_at(layer, ids)

    def decoded(self, rows: NDArray[Any], scales: NDArray[Any] | None) -> NDArray[np.float32]:
        """Return stored rows [n, width] as float32[n, dim]."""
        values = np.empty((len(rows), self.dim or 0), dtype=np.float32)
        self.row_type.decode(rows, scales, values)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class SomeLayers(SourceView):
    """Some layers of a source; `kept`, its layout, has these alone."""

    kept: HashLayout

    @property
    def layout(self) -> HashLayout:
        """The layout with these layers."""
        return self.kept

    @property
    def layers(self) -> tuple[int, ...]:
        """These layers."""
        return self.kept.layer_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantised(SourceView):
    """The rows of a source as the dtype `stored_as`, encoded when they are read.

    `layer_scales`: the one scale of each layer, for a dtype that has one.
    """

    stored_as: str
    layer_scales: Mapping[int, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @property
    def dim(self) -> int:
        """The values of a row."""
        return self.source.dim or 0

    @property
    def dtype(self) -> str:
        """How rows are encoded."""
        return self.stored_as

    def spans(self, layer: int, part: str = ROWS) -> tuple[Span, ...]:
        """Return () for rows and scales, which are in no file as they are."""
        return self.source.spans(layer, part) if part == HITS else ()

    def chunks(self, layer: int, part: str = ROWS) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, [n, ...]) in pieces, encoded when they are asked for."""
        if part == HITS:
            yield from self.source.chunks(layer, part)
            return
        if part == SCALES and layer in self.layer_scales:
            yield 0, self.layer_scales[layer]
            return
        rows, step = self.layout.layer(layer).rows, self._step
        for first in range(0, rows, step):
            yield first, self.lines(layer, part, first, min(step, rows - first))

    def lines(self, layer: int, part: str, first: int, count: int) -> NDArray[Any]:
        """Read and encode `count` rows from `first` on: [count, ...], or the one scale [1]."""
        if part == HITS:
            return self.source.lines(layer, part, first, count)
        if part == SCALES and layer in self.layer_scales:
            return self.layer_scales[layer]
        rows, scales = self.encoded(layer, first, count)
        if part == ROWS:
            return rows
        if scales is None:
            raise InputError(f"rows of {self.dtype} have no scales", "take the rows alone")
        return scales

    def encoded(
        self, layer: int, first: int, count: int
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return `count` rows from `first` on as stored, and their scales, from one reading."""
        rows, scales = self._empty(layer, count)
        straight = (self.source.dtype, self.dtype) == ("fp8_e8m0", "bfloat16")
        for begin in range(0, count, self._step):
            end = min(count, begin + self._step)
            if straight and self.dim % BLOCK == 0:
                from engram_cli.rows.codecs import fp8

                rows8 = self.source.lines(layer, ROWS, first + begin, end - begin)
                scales8 = self.source.lines(layer, SCALES, first + begin, end - begin)
                fp8.to_bfloat16(rows8, scales8, rows[begin:end])
                continue
            values = np.empty((end - begin, self.dim), dtype=np.float32)
            self.source.read(layer, first + begin, values)
            own = scales if scales is None or self.row_type.of_layer else scales[begin:end]
            self.row_type.encode(values, rows[begin:end], own)
        return rows, scales

    def stored(self, layer: int, ids: ArrayLike) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the rows at `ids` [n] as stored, and their scales."""
        values = self.source.vectors(layer, ids)
        rows, scales = self._empty(layer, len(values))
        self.row_type.encode(values, rows, scales)
        return rows, scales

    def vectors(self, layer: int, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the values float32[n, dim] that the encoded rows at `ids` [n] have."""
        return self.decoded(*self.stored(layer, ids))

    def read(self, layer: int, first: int, values: NDArray[np.float32]) -> None:
        """Write the values of the encoded rows from `first` on to `values` float32[n, dim]."""
        values[:] = self.decoded(*self.encoded(layer, first, len(values)))

    @property
    def _step(self) -> int:
        return max(1, _PIECE_VALUES // self.dim)

    def _empty(self, layer: int, count: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        row_type = self.row_type
        rows = np.empty((count, row_type.width(self.dim)), dtype=row_type.items.physical)
        if row_type.scaling is None:
            return rows, None
        if row_type.of_layer:
            return rows, self.layer_scales[layer]
        shape = row_type.scaling.shape(count, self.dim)
        return rows, np.empty(shape, dtype=row_type.scaling.dtype)


def some_layers(source: RowSource, layers: Sequence[int]) -> RowSource:
    """Return a source with `layers` of another one, in the order of its layout.

    Raises InputError for a layer that has no rows there.
    """
    lost = [layer for layer in layers if layer not in source.layers]
    if lost:
        raise InputError(
            f"{source.path} has no rows of layer {', '.join(map(str, lost))}",
            f"its layers are {', '.join(map(str, source.layers)) or 'not known'}",
        )
    entries = tuple(entry for entry in source.layout.layers if entry.layer in layers)
    if len(entries) == len(source.layout.layers):
        return source
    layout = replace(source.layout, layers=entries)
    if entries != source.layout.layers[: len(entries)]:
        # Without the layers before them, the scheme makes others of the same choices.
        choices = {k: v for k, v in layout.parameters.items() if k != "rows_per_head"}
        layout = replace(layout, parameters=choices)
    return SomeLayers(source=source, kept=layout)


def requantised(source: RowSource, dtype: str, scale: float | None = None) -> RowSource:
    """Return the rows of a source as `dtype`; the source itself where they are that.

    `scale`: of each layer, for a dtype that has one for all rows; None finds it, which reads all
    rows once. Raises InputError for a source without vectors, or an unknown dtype.
    """
    if source.dim is None or source.dtype is None:
        raise InputError(f"{source.path} holds no vectors", "give a table or a checkpoint")
    if dtype == source.dtype and scale is None:
        return source
    row_type = DTYPES.load(dtype)
    count = 1 if row_type.items.block is None else row_type.items.block[0]
    if source.dim % count:
        raise InputError(
            f"{source.path} has {source.dim} values a row, and {dtype} stores {count} together",
            "choose another --dtype",
        )
    scales = {}
    if row_type.of_layer:
        for layer in source.layers:
            found = scale
            if found is None:
                found = row_type.layer_scale(_largest(source, layer))
            scales[layer] = np.array([found], dtype=np.float32)
    elif scale is not None:
        raise InputError(f"{dtype} has no scale for a whole layer", "leave out --scale")
    return Requantised(source=source, stored_as=dtype, layer_scales=scales)


def _largest(source: RowSource, layer: int) -> float:
    """Return the largest size of a finite value in a layer, 0 where there is none."""
    rows, dim = source.layout.layer(layer).rows, source.dim or 1
    step, found = max(1, _PIECE_VALUES // dim), 0.0
    for first in range(0, rows, step):
        values = np.empty((min(step, rows - first), dim), dtype=np.float32)
        source.read(layer, first, values)
        sizes = np.abs(values)
        found = max(found, float(np.max(sizes, where=np.isfinite(sizes), initial=0)))
    return found


def origin(source: RowSource) -> RowSource:
    """Return the artifact that a source was made from, the source itself where it is one."""
    while isinstance(source, (SomeLayers, Requantised)):
        source = source.source
    return source
