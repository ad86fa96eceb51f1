"""One pass over a layer: stretches of rows on threads in, figures by column and likeness out.

Memory is a few buffers a thread and the samples, whatever the size of the table. Stretches are
merged in their order, so that the figures are the same for any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.progress import SILENT, Progress
from engram_cli.table.scan.alike import (
    ALL,
    LAST,
    MOST_ALIKE,
    SIGNS,
    Alike,
    Limits,
    Vectors,
    limits_of,
)
from engram_cli.table.scan.kernels import rows as kernels
from engram_cli.table.scan.likeness import Contents, Likeness, likeness
from engram_cli.table.scan.source import WORD, RowSource, Stretch

HOTTEST = 10
_SEED = 0x656E6772616D
_CHOSEN = 2**14  # rows for the samples that a thread keeps until they are taken
_LOOKED_AT = 2**13  # rows that are looked at before, in so many places
_LOOKS = 8
_NO_HITS = np.empty(0, dtype=np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnScan:
    """What the rows of a column are.

    `zero` and `not_finite` rows; of the others the `mean`, root mean square, `least` and `most`
    norm and `bins` int64[BINS] of them. `hit_rows`, `hits`, `max_hits`, and the mean norm of rows
    with a hit and without one: None without hits. `hottest`: (row of the column, hits), by hits.
    """

    rows: int
    zero: int
    not_finite: int
    mean: float
    rms: float
    least: float
    most: float
    bins: NDArray[np.int64] = field(repr=False)
    hit_rows: int | None
    hits: int | None
    max_hits: int | None
    hit_mean: float | None
    hottest: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerScan:
    """A layer read once: its columns, how alike its rows are, the bytes that were read."""

    layer: int
    columns: tuple[ColumnScan, ...]
    likeness: Likeness
    read_bytes: int


@dataclass(slots=True, kw_only=True, eq=False)
class _Sums:
    """Figures that add up, as the kernel writes them. `hottest` int64[2, HOTTEST]: rows, hits."""

    counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(kernels.COUNTS, dtype=np.int64)
    )
    sums: NDArray[np.float64] = field(
        default_factory=lambda: np.zeros(kernels.SUMS, dtype=np.float64)
    )
    ends: NDArray[np.float32] = field(
        default_factory=lambda: np.array([np.inf, 0.0], dtype=np.float32)
    )
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(kernels.BINS, dtype=np.int64))
    hottest: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((2, HOTTEST), dtype=np.int64)
    )

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What the kernel adds to, in its order."""
        return self.counts, self.sums, self.ends, self.bins, self.hottest

    def merge(self, other: _Sums) -> None:
        """Add the figures of rows that come after these."""
        largest = max(self.counts[kernels.MAX_HITS], other.counts[kernels.MAX_HITS])
        self.counts += other.counts
        self.counts[kernels.MAX_HITS] = largest
        self.sums += other.sums
        self.ends[0] = min(self.ends[0], other.ends[0])
        self.ends[1] = max(self.ends[1], other.ends[1])
        self.bins += other.bins
        for row, hits in other.hottest.T.tolist():
            kernels.heat(self.hottest, row, hits)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What a stretch gave: its sums, and `chosen` uint64[4, n], what the samples may want."""

    sums: _Sums
    chosen: NDArray[np.uint64]


class _Scratch(threading.local):
    """What a thread reads into, again and again: fresh pages would cost a third."""

    def __init__(self, source: RowSource) -> None:
        rows = source.piece_rows
        self.piece = np.zeros((rows, source.row_bytes), dtype=np.uint8)
        self.chosen = np.empty((kernels.COLUMNS, max(kernels.TILE, _CHOSEN)), dtype=np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Signs:
    """How rows are hashed and placed: `keys` uint64[words and scales of a row], the `mask` of the
    signs in a word, and how many words place a row.
    """

    keys: NDArray[np.uint64]
    mask: np.uint64
    leading: int

    @classmethod
    def of(cls, source: RowSource) -> _Signs:
        """Those of a layer; the keys are always the same."""
        size = source.row_bytes // WORD + source.row_scales
        keys = np.random.default_rng(_SEED).integers(0, 2**64, size=size, dtype=np.uint64)
        bits = 64 // source.word_values
        mask = sum(1 << at for at in range(bits - 1, 64, bits))
        return cls(keys=keys, mask=np.uint64(mask), leading=max(1, SIGNS // source.word_values))

    def count(self, source: RowSource, words: int) -> int:
        """The values whose signs the first `words` words hold."""
        return min(words * source.word_values, source.dim)


def scan_layer(
    source: RowSource,
    columns: Sequence[tuple[int, int]],
    vectors: Vectors,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> LayerScan:
    """Read all rows of a layer's columns, each (first row, rows), once.

    `vectors` gives rows of the layer, to compare the sampled ones. Raises ArtifactError for files
    that cannot be read.
    """
    total = sum(rows for _, rows in columns)
    signs, scratch = _Signs.of(source), _Scratch(source)
    limits = _first_limits(source, columns, signs, scratch)
    contents, alike = Contents(total), Alike(limits)
    merged = [_Sums() for _ in columns]
    stretches = list(source.stretches(columns))
    row_bytes = source.stored_row_bytes
    with ThreadPoolExecutor(threads) as pool:
        scanned = pool.map(
            lambda stretch: _scan(
                source, stretch, signs, scratch, (contents.threshold, *alike.limits)
            ),
            stretches,
        )
        for stretch, found in zip(stretches, scanned, strict=True):
            merged[stretch.column].merge(found.sums)
            contents.add(found.chosen)
            alike.add(found.chosen)
            progress.advance(stretch.rows * row_bytes)
    figures = tuple(
        _column(sums, begin, rows, source.hits is not None)
        for sums, (begin, rows) in zip(merged, columns, strict=True)
    )
    usual = sum(each.rows - each.zero - each.not_finite for each in figures)
    bits = signs.count(source, signs.leading), signs.count(source, 2 * signs.leading)
    return LayerScan(
        layer=source.layer,
        columns=figures,
        likeness=likeness(usual, contents, alike, vectors, bits),
        read_bytes=total * row_bytes,
    )


def _first_limits(
    source: RowSource, columns: Sequence[tuple[int, int]], signs: _Signs, scratch: _Scratch
) -> Limits:
    """What to choose rows by at first, from the signs of some rows of each part of the columns."""
    total = sum(rows for _, rows in columns)
    if total <= MOST_ALIKE:
        return ALL
    stretches = list(source.stretches(columns, step=-(-total // _LOOKS)))
    size = min(_LOOKED_AT, total) // len(stretches) + 1
    looked, met = 0, []
    for stretch in stretches:
        part = replace(stretch, rows=min(size, stretch.rows))
        looked += part.rows
        met.append(_scan(source, part, signs, scratch, (0, *ALL)).chosen)
    return limits_of(np.concatenate(met, axis=1), looked / total)


def _scan(
    source: RowSource,
    stretch: Stretch,
    signs: _Signs,
    scratch: _Scratch,
    wanted: tuple[int, ...],
) -> _Found:
    """Read one stretch. `wanted`: what the samples choose by, or more."""
    sums, chosen = _Sums(), list[NDArray[np.uint64]]()
    hits = _NO_HITS if source.hits is None else source.hits(stretch.first, stretch.rows)
    factors, scales = source.factors(stretch.first, stretch.rows), source.row_scales
    limits = np.array([min(limit, LAST) for limit in wanted], dtype=np.uint64)
    done = 0
    for items in source.pieces(stretch, scratch.piece):
        end = done + len(items)
        while done < end:
            done += kernels.add_rows(
                source.kind, items[done - end :], factors[done * scales :], scales,
                int(scales > 1), signs.keys, signs.mask, signs.leading, hits[done:],
                stretch.first + done, limits, *sums.arrays, scratch.chosen,
            )  # fmt: skip
            if done < end or end == stretch.rows:
                chosen.append(scratch.chosen[:, : sums.counts[kernels.CHOSEN]].copy())
                sums.counts[kernels.CHOSEN] = 0
    return _Found(sums=sums, chosen=np.concatenate(chosen, axis=1))


def _column(found: _Sums, begin: int, rows: int, counted: bool) -> ColumnScan:
    counts = {name: int(found.counts[getattr(kernels, name)]) for name in
              ("ZERO", "NOT_FINITE", "HIT", "HITS", "MAX_HITS")}  # fmt: skip
    usual = rows - counts["ZERO"] - counts["NOT_FINITE"]
    norm, square, hit_norm = map(float, found.sums)
    return ColumnScan(
        rows=rows,
        zero=counts["ZERO"],
        not_finite=counts["NOT_FINITE"],
        mean=norm / max(usual, 1),
        rms=float(np.sqrt(square / max(usual, 1))),
        least=float(found.ends[0]) if usual else 0.0,
        most=float(found.ends[1]),
        bins=found.bins,
        hit_rows=counts["HIT"] if counted else None,
        hits=counts["HITS"] if counted else None,
        max_hits=counts["MAX_HITS"] if counted else None,
        hit_mean=hit_norm / counts["HIT"] if counted and counts["HIT"] else None,
        hottest=tuple((row - begin, hits) for row, hits in found.hottest.T.tolist() if hits),
    )
