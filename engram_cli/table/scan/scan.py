"""One pass over a layer: ranges of rows on threads in, figures by column and duplicates out.

Memory is a few buffers a thread, the samples, and the hashes of at most `EXACT` rows. Ranges are
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

from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import SILENT, Progress
from engram_cli.table.scan.contents import EVERYTHING, Contents, Duplicates
from engram_cli.table.scan.kernels import rows as kernels
from engram_cli.table.scan.source import WORD, LayerReader, RowRange

HOTTEST = 10
SEED = 0x656E6772616D
_CHOSEN = 2**14  # rows for the samples that a thread keeps until they are taken
Hottest = tuple[tuple[int, int], ...]  # (row of a column, hits), by hits


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """One head of one order of one layer.

    `zero` and `not_finite` rows; `mean`, `rms`, `least`, `most`: norms of the others; `hit_mean`
    and `unhit_mean`: of those with and without a hit. None where there are no vectors or no hits.
    `read`: the rows that were read for these. The errors are standard errors, 0 where all were.
    `zero_most`, `not_finite_most`: at most so many rows, with 95 % confidence. This holds for rare
    rows too, for which a standard error means little.
    """

    layer: int
    order: int
    head: int
    rows: int
    hit_rows: int | None
    hits: int | None
    max_hits: int | None
    zero: int | None = None
    not_finite: int | None = None
    mean: float | None = None
    rms: float | None = None
    least: float | None = None
    most: float | None = None
    hit_mean: float | None = None
    unhit_mean: float | None = None
    read: int | None = None
    zero_error: float = 0.0
    not_finite_error: float = 0.0
    mean_error: float = 0.0
    hit_mean_error: float = 0.0
    unhit_mean_error: float = 0.0
    zero_most: int | None = None
    not_finite_most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerScan:
    """A layer read once: by column its figures, how many norms lie in each bin, its hottest rows.

    `bins` int64[C, BINS]. Without vectors there are no bins and no duplicates. `read`: the rows
    whose vectors were read.
    """

    columns: tuple[Columns, ...]
    hottest: tuple[Hottest, ...]
    read: int = 0
    bins: NDArray[np.int64] | None = field(default=None, repr=False)
    duplicates: Duplicates | None = None


class Sums:
    """Figures that add up, as the kernel writes them. `hottest` int64[2, HOTTEST]: rows, hits."""

    def __init__(self) -> None:
        self.counts = np.zeros(kernels.COUNTS, dtype=np.int64)
        self.sums = np.zeros(kernels.SUMS, dtype=np.float64)
        self.ends = np.array([np.inf, 0.0], dtype=np.float32)
        self.bins = np.zeros(kernels.BINS, dtype=np.int64)
        self.hottest = np.zeros((2, HOTTEST), dtype=np.int64)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What the kernel adds to, in its order."""
        return self.counts, self.sums, self.ends, self.bins, self.hottest

    def merge(self, other: Sums) -> None:
        """Add the figures of rows that come after these."""
        largest = max(self.counts[kernels.MAX_HITS], other.counts[kernels.MAX_HITS])
        self.counts += other.counts
        self.counts[kernels.MAX_HITS] = largest
        self.sums += other.sums
        self.ends[0] = min(self.ends[0], other.ends[0])
        self.ends[1] = max(self.ends[1], other.ends[1])
        self.bins += other.bins
        for row, hits in other.hottest.T.tolist():
            if not hits:
                break
            kernels.heat(self.hottest, row, hits)


class _Scratch(threading.local):
    """What a thread reads into, again and again: fresh pages would cost a third."""

    def __init__(self, source: LayerReader) -> None:
        rows = source.piece_rows
        self.piece = np.zeros((rows, source.row_bytes), dtype=np.uint8)
        self.chosen = np.empty((kernels.COLUMNS, _CHOSEN), dtype=np.uint64)


def scan_layer(source: LayerReader, *, threads: int = 1, progress: Progress = SILENT) -> LayerScan:
    """Read all rows of a layer once, column by column.

    Raises ArtifactError for files that cannot be read.
    """
    layout, layer = source.source.layout, source.layer
    entry = layout.layer(layer)
    total = sum(entry.moduli)
    scratch, contents, keys = _Scratch(source), Contents(total), hash_keys(source)
    merged = [Sums() for _ in entry.moduli]
    row_ranges = list(source.row_ranges(list(zip(entry.offsets, entry.moduli, strict=True))))
    with ThreadPoolExecutor(threads) as pool:
        scanned = pool.map(
            lambda row_range: _scan(source, row_range, keys, scratch, contents.threshold),
            row_ranges,
        )
        for row_range, (sums, chosen) in zip(row_ranges, scanned, strict=True):
            merged[row_range.column].merge(sums)
            contents.add(chosen)
            progress.advance(row_range.rows * source.stored_row_bytes)
    counted = source.counted is not None
    figures = tuple(column_of(layout, layer, at, sums, counted) for at, sums in enumerate(merged))
    lost = sum(int(sums.counts[[kernels.ZERO, kernels.NOT_FINITE]].sum()) for sums in merged)
    return LayerScan(
        columns=figures,
        hottest=hottest_of(merged, entry.offsets),
        bins=np.stack([sums.bins for sums in merged]),
        duplicates=contents.figures(total - lost),
        read=total,
    )


def hash_keys(source: LayerReader) -> NDArray[np.uint64]:
    """Return a random key for each word and each scale of a row, always the same ones."""
    size = source.row_bytes // WORD + source.row_scales
    return np.random.default_rng(SEED).integers(0, 2**64, size=size, dtype=np.uint64)


def hottest_of(columns: Sequence[Sums], offsets: Sequence[int]) -> tuple[Hottest, ...]:
    """Return the hottest rows of each column, numbered from its first row."""
    return tuple(
        tuple((row - begin, hits) for row, hits in sums.hottest.T.tolist() if hits)
        for sums, begin in zip(columns, offsets, strict=True)
    )


def scan_hits(layout: HashLayout, layer: int, hits: NDArray[np.uint32]) -> LayerScan:
    """Return what hits uint32[rows] alone say of a layer."""
    columns, hottest, entry = [], [], layout.layer(layer)
    for at, (begin, rows) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
        own = hits[begin : begin + rows]
        columns.append(
            Columns(
                layer=layer,
                order=layout.orders[at // layout.heads],
                head=at % layout.heads,
                rows=rows,
                hit_rows=int(np.count_nonzero(own)),
                hits=int(own.sum(dtype=np.int64)),
                max_hits=int(own.max()),
            )
        )
        most = min(HOTTEST, rows)
        least = np.partition(own, rows - most)[rows - most]
        among = np.flatnonzero(own >= max(least, 1))
        best = among[np.lexsort([among, -own[among].astype(np.int64)])][:most]
        hottest.append(tuple((int(row), int(own[row])) for row in best))
    return LayerScan(columns=tuple(columns), hottest=tuple(hottest))


def _scan(
    source: LayerReader,
    row_range: RowRange,
    keys: NDArray[np.uint64],
    scratch: _Scratch,
    below: int,
) -> tuple[Sums, NDArray[np.uint64]]:
    """Read one range; return its sums, and the rows uint64[2, n] whose hash is under `below`."""
    sums, chosen = Sums(), list[NDArray[np.uint64]]()
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
    return sums, np.concatenate(chosen, axis=1)


def column_of(
    layout: HashLayout, layer: int, at: int, found: Sums, counted: bool, read: int | None = None
) -> Columns:
    """Return the figures of a column from the sums of its rows, or of the `read` ones of them."""
    rows = layout.layer(layer).moduli[at] if read is None else read
    zero, not_finite, hit_rows, hits, max_hits, _ = map(int, found.counts)
    usual = rows - zero - not_finite
    norm, square, hit_norm = map(float, found.sums)
    mean = norm / max(usual, 1)
    hit_mean = hit_norm / hit_rows if counted and hit_rows else None
    unhit = None
    if counted and rows - hit_rows - not_finite > 0:
        total = mean * usual - (hit_mean or 0.0) * hit_rows
        unhit = max(total, 0.0) / (rows - hit_rows - not_finite)
    return Columns(
        layer=layer,
        order=layout.orders[at // layout.heads],
        head=at % layout.heads,
        rows=rows,
        hit_rows=hit_rows if counted else None,
        hits=hits if counted else None,
        max_hits=max_hits if counted else None,
        zero=zero,
        zero_most=zero,
        not_finite=not_finite,
        not_finite_most=not_finite,
        mean=mean,
        rms=float(np.sqrt(square / max(usual, 1))),
        least=float(found.ends[0]) if usual else 0.0,
        most=float(found.ends[1]),
        hit_mean=hit_mean,
        unhit_mean=unhit,
        read=rows,
    )
