"""Compares two sources row by row: bytes first, values only where bytes differ."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import LayerHash
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import Floats, RowType
from engram_cli.rows.error_bounds import error_bounds
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.table.compare.levels import EQUAL, LEAST, LEVELS, WITHIN, levels_of

_BLOCK_BYTES = 2**20  # of each source, which stay in the cache between reading and comparing
_MEASURED_VALUES = 2**20  # decoded at a time
_LISTED = 10  # rows of a layer
_READ_ALL = 4  # where one row of so many differs, the block is read again rather than rows of it


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedRow:
    """A row of a layer's table: the norm of its difference, that relative to the row before, and
    the cosine of both. A row that was zero is relative to the row after."""

    row: int
    norm: float
    relative: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerChanges:
    """What changed in a layer.

    `levels` uint8[rows]: of each row, see `levels`. By column: rows that `changed` int64[C], that
    are `within` the codec's error and that are `not_finite` on one side, which count as changed;
    sums of `cosine` and `relative` float64[C] over the changed and finite rows, and the `largest`
    relative change. By level: `counts` int64[LEVELS] of rows, `change` float64[LEVELS], the sum of
    the squared norms. `most`: the most changed rows.
    """

    entry: LayerHash
    levels: NDArray[np.uint8]
    changed: NDArray[np.int64]
    within: NDArray[np.int64]
    not_finite: NDArray[np.int64]
    cosine: NDArray[np.float64]
    relative: NDArray[np.float64]
    largest: NDArray[np.float64]
    counts: NDArray[np.int64]
    change: NDArray[np.float64]
    most: list[ChangedRow] = field(default_factory=list)

    @classmethod
    def of(cls, entry: LayerHash) -> LayerChanges:
        """Return a layer in which nothing changed yet."""
        columns = len(entry.moduli)
        return cls(
            entry=entry,
            levels=np.zeros(entry.rows, dtype=np.uint8),
            changed=np.zeros(columns, dtype=np.int64),
            within=np.zeros(columns, dtype=np.int64),
            not_finite=np.zeros(columns, dtype=np.int64),
            cosine=np.zeros(columns, dtype=np.float64),
            relative=np.zeros(columns, dtype=np.float64),
            largest=np.zeros(columns, dtype=np.float64),
            counts=np.zeros(LEVELS, dtype=np.int64),
            change=np.zeros(LEVELS, dtype=np.float64),
        )

    def take(self, found: Measured) -> None:
        """Add measured rows."""
        self.levels[found.rows] = found.levels
        self.counts[:] += np.bincount(found.levels, minlength=LEVELS)
        finite = np.isfinite(found.norms)
        squares = np.where(finite & (found.levels >= LEAST), found.norms, 0.0) ** 2
        self.change[:] += np.bincount(found.levels, weights=squares, minlength=LEVELS)
        last = len(self.entry.moduli) - 1  # what pads a table counts as its last column
        columns = np.searchsorted(self.entry.offsets, found.rows, side="right") - 1
        columns, size = np.minimum(columns, last), len(self.entry.moduli)
        changed = found.levels >= LEAST
        self.within[:] += np.bincount(columns[found.levels == WITHIN], minlength=size)
        self.changed[:] += np.bincount(columns[changed], minlength=size)
        self.not_finite[:] += np.bincount(columns[changed & ~finite], minlength=size)
        at = np.flatnonzero(changed & finite)
        self.cosine[:] += np.bincount(columns[at], found.cosines[at], size)
        self.relative[:] += np.bincount(columns[at], found.relatives[at], size)
        np.maximum.at(self.largest, columns[at], found.relatives[at])
        self._list(found, at)

    def _list(self, found: Measured, at: NDArray[np.int64]) -> None:
        if len(at) > _LISTED:
            at = at[np.argpartition(found.norms[at], -_LISTED)[-_LISTED:]]
        self.most.extend(
            ChangedRow(
                row=int(found.rows[i]),
                norm=float(found.norms[i]),
                relative=float(found.relatives[i]),
                cosine=float(found.cosines[i]),
            )
            for i in at.tolist()
        )
        self.most.sort(key=lambda each: (-each.norm, each.row))
        del self.most[_LISTED:]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """Rows [n] of a layer whose bytes differ, ascending: their levels uint8[n], and float64[n].

    `norms` of the differences are infinite where a side is not finite.
    """

    rows: NDArray[np.int64]
    levels: NDArray[np.uint8]
    norms: NDArray[np.float64]
    cosines: NDArray[np.float64]
    relatives: NDArray[np.float64]


class RowPair:
    """Two sources of one layout and one dim, whose rows are compared. May run in threads."""

    def __init__(
        self,
        before: RowSource,
        after: RowSource,
        only: Mapping[int, NDArray[np.int64]] | None = None,
    ) -> None:
        """`only`: by layer, the rows that can differ, ascending; blocks without any are equal."""
        assert before.dtype is not None
        assert after.dtype is not None
        self.before, self.after, self.dim, self._only = before, after, before.dim or 0, only
        self.types = DTYPES.load(before.dtype), DTYPES.load(after.dtype)
        self._sizes = [row_type.row_bytes(self.dim) for row_type in self.types]
        self.one_dtype = before.dtype == after.dtype
        # A tensor of nvfp4 has a scale of its own that no row shows.
        self._held = threading.local()
        self._by_bytes = self.one_dtype and before.dtype != "nvfp4"

    def compare(self, layer: int, threads: int = 1, progress: Progress = SILENT) -> LayerChanges:
        """Read and compare all rows of a layer. Raises ArtifactError."""
        entry = self.before.layout.layer(layer)
        found = LayerChanges.of(entry)
        blocks = self._blocks(layer)
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[tuple[int, Future[list[Measured]]]] = deque()

            def take() -> None:
                count, future = waiting.popleft()
                for measured in future.result():
                    found.take(measured)
                progress.advance(count * sum(self._sizes))

            for first, count in blocks:
                waiting.append((count, pool.submit(self._block, layer, first, count)))
                if len(waiting) > 4 * threads:
                    take()
            while waiting:
                take()
        return found

    @property
    def bytes(self) -> int:
        """The bytes of both sides that are compared, of all layers."""
        layers = self.before.layers
        rows = sum(count for layer in layers for _, count in self._blocks(layer))
        return rows * sum(self._sizes)

    def _blocks(self, layer: int) -> Iterator[tuple[int, int]]:
        """Yield the first row and the rows of each block that is to be compared."""
        rows = self.before.layout.layer(layer).rows
        step = max(1, _BLOCK_BYTES // max(self._sizes))
        firsts: Iterable[int] = range(0, rows, step)
        if self._only is not None:
            firsts = (np.unique(self._only[layer] // step) * step).tolist()
        return ((first, min(step, rows - first)) for first in firsts)

    def _block(self, layer: int, first: int, count: int) -> list[Measured]:
        """Compare a block of rows; return those that differ in their bytes."""
        rows, scales = self._differing(layer, first, count)
        if not len(rows):
            return []
        step = max(1, _MEASURED_VALUES // self.dim)
        if _READ_ALL * len(rows) < count:
            parts = (rows[at : at + step] for at in range(0, len(rows), step))
            return [self._measured(layer, each, scales, first) for each in parts]
        found = []
        for at in range(0, count, step):
            some = rows[(rows >= at) & (rows < at + step)]
            if len(some):
                span = at, min(step, count - at)
                found.append(self._measured(layer, some, scales, first, span))
        return found

    def _differing(
        self, layer: int, first: int, count: int
    ) -> tuple[NDArray[np.int64], tuple[NDArray[Any] | None, ...]]:
        """Return the rows of a block whose bytes differ, from 0, and the scales of both sides."""
        scales = tuple(
            _scales(source, row_type, layer, first, count)
            for source, row_type in zip((self.before, self.after), self.types, strict=True)
        )
        if not self._by_bytes:
            return np.arange(count), scales
        if self.types[0].of_layer and not np.array_equal(_known(scales[0]), _known(scales[1])):
            return np.arange(count), scales
        read = tuple(each.lines(layer, ROWS, first, count) for each in self._sides)
        # Held until the next block is read: else malloc returns the memory to the system after each
        # block, and the pages are zeroed again for the next one: 3 times as slow in one thread.
        self._held.read = read
        differ = _unequal(*read)
        if scales[0] is not None and not self.types[0].of_layer:
            own = _unequal(*map(_known, scales))
            differ = own if differ is None else differ if own is None else differ | own
        none = np.empty(0, dtype=np.int64)
        return (none if differ is None else np.flatnonzero(differ)), scales

    @property
    def _sides(self) -> tuple[RowSource, RowSource]:
        return self.before, self.after

    def _measured(
        self,
        layer: int,
        rows: NDArray[np.int64],
        scales: tuple[NDArray[Any] | None, ...],
        first: int,
        span: tuple[int, int] | None = None,
    ) -> Measured:
        """Measure `rows` of the block from `first` on; `span`: read all of it, not row by row."""
        values = []
        for source in self._sides:
            if span is None:
                values.append(source.vectors(layer, first + rows))
                continue
            read = np.empty((span[1], self.dim), dtype=np.float32)
            source.read(layer, first + span[0], read)
            whole = len(rows) == span[1]
            values.append(read if whole else read[rows - span[0]])
        own = [
            each if each is None or row_type.of_layer else each[rows]
            for each, row_type in zip(scales, self.types, strict=True)
        ]
        return measure(first + rows, values[0], values[1], self._bounds(values, own))

    def _bounds(self, values: list[Floats], scales: list[NDArray[Any] | None]) -> Floats | None:
        """Return how far copies of one row may differ: [n, dim]; None where they are equal.

        Both roundings add up where the dtypes differ. Of one dtype, rows under other scales may be
        copies; under the same scales, and without any, they are equal or changed.
        """
        if self.one_dtype and (scales[0] is None or scales[1] is None):
            return None
        one, two = (
            error_bounds(row_type, each, own)
            for row_type, each, own in zip(self.types, values, scales, strict=True)
        )
        if not self.one_dtype:
            return one + two
        other = (_known(scales[0]) != _known(scales[1])).reshape(-1)
        if not self.types[0].of_layer:
            other = other.reshape(len(values[0]), -1).any(axis=1)
        bounds: Floats = np.where(other[:, None], np.maximum(one, two), np.float32(0))
        return bounds


def measure(
    rows: NDArray[np.int64], before: Floats, after: Floats, bounds: Floats | None
) -> Measured:
    """Measure the differences of rows float32[n, dim]; `bounds` [n, dim]: what is no change.

    NaN at the same place on both sides is no difference.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        differences = after - before
    finite = np.isfinite(differences).all(axis=1)
    alike = np.zeros(len(rows), dtype=np.bool_)
    for at in np.flatnonzero(~finite).tolist():
        alike[at] = np.array_equal(before[at], after[at], equal_nan=True)
    differences[~finite] = 0
    norms = _norms(differences)
    if not finite.all():
        before, after = (np.where(finite[:, None], each, np.float32(0)) for each in (before, after))
    own, other = _norms(before), _norms(after)
    lengths, products = own * other, np.einsum("nd,nd->n", before, after, dtype=np.float64)
    cosines = np.divide(products, lengths, out=np.zeros(len(rows)), where=lengths > 0)
    base = np.where(own > 0, own, other)
    relatives = np.divide(norms, base, out=np.zeros(len(rows)), where=base > 0)
    norms[~finite & ~alike] = np.inf
    levels = np.where(norms > 0, levels_of(np.minimum(norms, 1e300)), EQUAL).astype(np.uint8)
    if bounds is not None:
        within = finite & (np.abs(differences) <= bounds).all(axis=1)
        levels[within & (norms > 0)] = WITHIN
    return Measured(
        rows=rows, levels=levels, norms=norms, cosines=np.clip(cosines, -1, 1), relatives=relatives
    )


def _norms(values: Floats) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", values, values, dtype=np.float64))
    return found


def _scales(
    source: RowSource, row_type: RowType, layer: int, first: int, count: int
) -> NDArray[Any] | None:
    return None if row_type.scaling is None else source.lines(layer, SCALES, first, count)


def _known(scales: NDArray[Any] | None) -> NDArray[Any]:
    assert scales is not None
    return scales


def _unequal(one: NDArray[Any], two: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return bool[n]: the rows that differ in their bytes; None where none does."""
    a, b = (_words(each) for each in (one, two))
    if np.array_equal(a, b):
        return None
    differ: NDArray[np.bool_] = (a != b).any(axis=1)
    return differ


def _words(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows [n, ...] as the widest integers that their bytes divide into."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
    size = flat.shape[1] * flat.itemsize
    width = next(width for width in (8, 4, 2, 1) if size % width == 0)
    return flat.view(np.uint8).view(f"u{width}")
