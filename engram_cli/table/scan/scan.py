"""One pass over a layer: ranges of rows on threads in, figures by column and duplicates out.

Memory is a few buffers a thread and the samples, whatever the size of the table. Stretches are
merged in their order, so that the figures are the same for any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.progress import SILENT, Progress
from engram_cli.table.scan.duplicates import EVERYTHING, Contents, Duplicates
from engram_cli.table.scan.kernels import rows as kernels
from engram_cli.table.scan.source import WORD, LayerReader, RowRange

HOTTEST = 10
_SEED = 0x656E6772616D
_CHOSEN = 2**14  # rows for the samples that a thread keeps until they are taken


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
    """A layer read once: its columns, its duplicate rows, the bytes that were read."""

    layer: int
    columns: tuple[ColumnScan, ...]
    duplicates: Duplicates
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
    """What a range gave: its sums, and `chosen` uint64[2, n], the sampled rows."""

    sums: _Sums
    chosen: NDArray[np.uint64]


class _Scratch(threading.local):
    """What a thread reads into, again and again: fresh pages would cost a third."""

    def __init__(self, source: LayerReader) -> None:
        rows = source.piece_rows
        self.piece = np.zeros((rows, source.row_bytes), dtype=np.uint8)
        self.chosen = np.empty((kernels.COLUMNS, max(kernels.TILE, _CHOSEN)), dtype=np.uint64)


def scan_layer(
    source: LayerReader,
    columns: Sequence[tuple[int, int]],
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> LayerScan:
    """Read all rows of a layer's columns, each (first row, rows), once.

    Raises ArtifactError for files that cannot be read.
    """
    total = sum(rows for _, rows in columns)
    scratch, keys, contents = _Scratch(source), _hash_keys(source), Contents(total)
    merged = [_Sums() for _ in columns]
    row_ranges = list(source.row_ranges(columns))
    row_bytes = source.stored_row_bytes
    with ThreadPoolExecutor(threads) as pool:
        scanned = pool.map(
            lambda row_range: _scan(source, row_range, keys, scratch, contents.threshold),
            row_ranges,
        )
        for row_range, found in zip(row_ranges, scanned, strict=True):
            merged[row_range.column].merge(found.sums)
            contents.add(found.chosen)
            progress.advance(row_range.rows * row_bytes)
    figures = tuple(
        _column(sums, begin, rows, source.counted is not None)
        for sums, (begin, rows) in zip(merged, columns, strict=True)
    )
    usual = sum(each.rows - each.zero - each.not_finite for each in figures)
    return LayerScan(
        layer=source.layer,
        columns=figures,
        duplicates=contents.figures(usual),
        read_bytes=total * row_bytes,
    )


def _hash_keys(source: LayerReader) -> NDArray[np.uint64]:
    """A random key for each word and each scale of a row, always the same."""
    size = source.row_bytes // WORD + source.row_scales
    return np.random.default_rng(_SEED).integers(0, 2**64, size=size, dtype=np.uint64)


def _scan(
    source: LayerReader,
    row_range: RowRange,
    keys: NDArray[np.uint64],
    scratch: _Scratch,
    below: int,
) -> _Found:
    """Read one range; sample the rows whose hash is under `below`."""
    sums, chosen = _Sums(), list[NDArray[np.uint64]]()
    hits = source.hits(row_range.first, row_range.rows)
    factors, scales = source.factors(row_range.first, row_range.rows), source.row_scales
    limit = np.uint64(min(below, EVERYTHING - 1))
    done = 0
    for items in source.pieces(row_range, scratch.piece):
        end = done + len(items)
        while done < end:
            done += kernels.add_rows(
                source.kind, items[done - end :], factors[done * scales :], scales,
                int(scales > 1), keys, hits[done:], row_range.first + done, limit,
                *sums.arrays, scratch.chosen,
            )  # fmt: skip
            if done < end or end == row_range.rows:
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
