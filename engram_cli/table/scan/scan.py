"""One pass over a layer: stretches of rows on threads in, figures by column and likeness out.

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
from engram_cli.table.scan import kernels
from engram_cli.table.scan.likeness import EVERYTHING, Alike, Contents, Likeness, Vectors, likeness
from engram_cli.table.scan.source import RowSource, Stretch

HOTTEST = 10
_SEED = 0x656E6772616D
_CHOSEN = 2**14  # rows for the samples that a thread keeps until they are taken
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
    """What a stretch gave: its sums, and the rows, hashes and signatures the samples may want."""

    sums: _Sums
    chosen: NDArray[np.uint64]


class _Scratch(threading.local):
    """What a thread reads and measures into, again and again: fresh pages would cost a third."""

    def __init__(self, source: RowSource) -> None:
        rows = source.piece_rows
        self.words = np.zeros((rows, 2, source.words // 2), dtype=np.uint32)
        self.measures = (
            np.empty(rows, dtype=np.float32),
            np.empty(rows, dtype=np.uint64),
            np.empty(rows, dtype=np.uint32),
        )
        self.chosen = np.empty((3, max(rows, _CHOSEN)), dtype=np.uint64)


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
    contents, alike = Contents(total), Alike(total)
    merged = [_Sums() for _ in columns]
    stretches = list(source.stretches(columns))
    row_bytes = source.stored_row_bytes
    keys = np.random.default_rng(_SEED).integers(
        0, 2**32, size=(2, source.words // 2), dtype=np.uint32
    )
    scratch = _Scratch(source)
    with ThreadPoolExecutor(threads) as pool:
        scanned = pool.map(
            lambda stretch: _scan(
                source, stretch, scratch, keys, contents.threshold, alike.threshold
            ),
            stretches,
        )
        for stretch, found in zip(stretches, scanned, strict=True):
            merged[stretch.column].merge(found.sums)
            rows, hashes, signs = found.chosen
            contents.add(hashes, rows.astype(np.int64))
            alike.add(signs.astype(np.uint32), rows.astype(np.int64))
            progress.advance(stretch.rows * row_bytes)
    figures = tuple(
        _column(sums, begin, rows, source.hits is not None)
        for sums, (begin, rows) in zip(merged, columns, strict=True)
    )
    usual = sum(each.rows - each.zero - each.not_finite for each in figures)
    bits = min(kernels.SIGNS, source.words // 2)
    return LayerScan(
        layer=source.layer,
        columns=figures,
        likeness=likeness(usual, contents, alike, vectors, bits),
        read_bytes=total * row_bytes,
    )


def _scan(
    source: RowSource,
    stretch: Stretch,
    scratch: _Scratch,
    keys: NDArray[np.uint32],
    below: int,
    signs_below: int,
) -> _Found:
    """Read one stretch. `below`, `signs_below`: what the samples want, or more."""
    sums, chosen = _Sums(), list[NDArray[np.uint64]]()
    hits = _NO_HITS if source.hits is None else source.hits(stretch.first, stretch.rows)
    wanted = np.uint64(min(below, EVERYTHING - 1)), np.uint64(min(signs_below, EVERYTHING - 1))
    done = 0
    for words in source.pieces(stretch, scratch.words):
        end = done + len(words)
        while done < end:
            done += kernels.add_rows(
                source.kind, words[done - end :], keys, *scratch.measures,
                hits[done:], stretch.first + done, *wanted, *sums.arrays, scratch.chosen,
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
