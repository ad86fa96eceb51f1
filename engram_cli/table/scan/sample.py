"""A sample of a layer's rows: the figures of a full scan, with their standard errors.

Each head is cut into equal parts, and a run of rows is read from a random place of each, always the
same. Runs are dealt to groups; how much the groups' figures differ gives the errors, whatever rows
that lie together have in common. Source: Wolter, "Introduction to Variance Estimation" (2007), the
random groups. Hits are counted of all rows: they take 4 bytes a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engram_cli.malloc import keep_freed
from engram_cli.progress import SILENT, Progress
from engram_cli.table.scan.contents import EVERYTHING, Contents, Duplicates
from engram_cli.table.scan.kernels import rows as kernels
from engram_cli.table.scan.scan import (
    SEED,
    Columns,
    LayerScan,
    Sums,
    column_of,
    hash_keys,
    hottest_of,
)
from engram_cli.table.scan.source import LayerReader

SAMPLED = 2**16  # rows of a layer; the mean norm of one of 16 heads is then known to 0.2 %
WORTHWHILE = 4  # layers with fewer times as many rows are read whole
GROUPS = 16
RUN = 4  # rows one after another: longer runs read fewer pages and know less of duplicates
_HITS = 2**20  # rows whose hits are read at a time
_MET = 3.0  # expected where there are none with a chance of 5 %
_NORMAL_95 = 1.645
_TOGETHER = RUN**2 / (2 * RUN - 1)


def is_sampled(source: LayerReader) -> bool:
    """Return whether a sample of the layer is read, unless all rows are asked for."""
    return sum(source.source.layout.layer(source.layer).moduli) > WORTHWHILE * SAMPLED


def scan_sample(source: LayerReader, *, threads: int = 1, progress: Progress = SILENT) -> LayerScan:
    """Read a sample of a layer's rows, and the hits of all. Raises ArtifactError for files that
    cannot be read."""
    keep_freed()  # else each array comes in fresh pages: looking for duplicates takes 9 ms, not 3
    layout, layer = source.source.layout, source.layer
    entry, counted = layout.layer(layer), source.counted is not None
    drawn = [
        begin + _drawn(rows, len(entry.moduli), [SEED, layer, at])
        for at, (begin, rows) in enumerate(zip(entry.offsets, entry.moduli, strict=True))
    ]
    ids = np.concatenate([each.reshape(-1) for each in drawn])
    groups, chosen, unevenness = _measured(source, ids, [each.shape for each in drawn])
    progress.advance(len(ids) * source.stored_row_bytes)
    hot = _counted(source, threads) if counted else [Sums() for _ in drawn]
    columns, bins = [], []
    for at, (own, rows) in enumerate(zip(groups, entry.moduli, strict=True)):
        whole, read = Sums(), drawn[at].size
        for sums in own:
            whole.merge(sums)
        found = column_of(layout, layer, at, whole, counted, read)
        apart = [column_of(layout, layer, at, sums, counted, read // len(own)) for sums in own]
        if counted:
            found = _with_hits(found, hot[at])
        columns.append(_estimated(found, apart, rows, unevenness[at]))
        bins.append(np.rint(whole.bins * (rows / read)).astype(np.int64))
    contents = Contents(0)
    contents.add(np.stack([ids[chosen[kernels.ROW].astype(np.int64)], chosen[kernels.HASH]]))
    return LayerScan(
        columns=tuple(columns),
        hottest=hottest_of(hot, entry.offsets),
        bins=np.stack(bins),
        duplicates=_bounded(
            contents.figures(chosen.shape[1]), contents.repeated, sum(entry.moduli)
        ),
        read=len(ids),
    )


def _drawn(rows: int, columns: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """Return rows [groups, n] of a column of `rows`: runs from equal parts of it, dealt in turn.

    All of a small one, in one group.
    """
    runs = max(1, SAMPLED // (columns * GROUPS * RUN)) * GROUPS
    if rows < WORTHWHILE * runs * RUN:
        return np.arange(rows, dtype=np.int64)[None]
    edges = np.arange(runs + 1, dtype=np.int64) * rows // runs
    first = np.random.default_rng(seed).integers(edges[:-1], edges[1:] - RUN + 1)
    dealt = first.reshape(-1, GROUPS).T
    return (dealt[:, :, None] + np.arange(RUN)).reshape(GROUPS, -1)


def _measured(
    source: LayerReader, ids: NDArray[np.int64], shapes: Sequence[tuple[int, ...]]
) -> tuple[list[list[Sums]], NDArray[np.uint64], list[float]]:
    """Return the sums of each group of each column; all usual rows uint64[2, n] by their place
    among `ids`, with their hashes; and of each column the squares of the other rows of each run.
    """
    items, factors = source.taken(ids)
    hits, scales, keys = source.hits_at(ids), source.row_scales, hash_keys(source)
    chosen = np.empty((kernels.COLUMNS, len(ids)), dtype=np.uint64)
    found, first, taken, squares = list[list[Sums]](), 0, 0, list[float]()
    for groups, size in shapes:
        own, begin, before = [Sums() for _ in range(groups)], first, taken
        for sums in own:
            sums.counts[kernels.CHOSEN] = taken
            kernels.add_rows(
                source.kind, items[first : first + size], factors[first * scales :], scales,
                int(scales > 1), keys, hits[first : first + size], first,
                np.uint64(EVERYTHING - 1), *sums.arrays, chosen,
            )  # fmt: skip
            taken = int(sums.counts[kernels.CHOSEN])
            sums.counts[kernels.CHOSEN] = 0
            first += size
        found.append(own)
        others = 0.0
        if taken - before < first - begin:
            runs = (chosen[kernels.ROW, before:taken].astype(np.int64) - begin) // RUN
            usual = np.bincount(runs, minlength=-((begin - first) // RUN))
            others = float(((RUN - usual) ** 2).sum())
        squares.append(others)
    return found, chosen[:, :taken], squares


def _counted(source: LayerReader, threads: int) -> list[Sums]:
    """Return the sums of the hits of all rows of each column."""
    entry = source.source.layout.layer(source.layer)

    def count(piece: tuple[int, int, int]) -> tuple[int, Sums]:
        at, first, rows = piece
        sums, hits = Sums(), source.hits(first, rows)
        none = np.zeros(len(hits), dtype=np.float32)
        kernels.fold_hits(none, hits, first, sums.counts, sums.sums, sums.hottest)
        return at, sums

    def pieces() -> Iterator[tuple[int, int, int]]:
        for at, (begin, rows) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
            for first in range(begin, begin + rows, _HITS):
                yield at, first, min(_HITS, begin + rows - first)

    found = [Sums() for _ in entry.moduli]
    with ThreadPoolExecutor(threads) as pool:
        for at, sums in pool.map(count, pieces()):
            found[at].merge(sums)
    return found


def _with_hits(found: Columns, hot: Sums) -> Columns:
    hit, hits, most = hot.counts[[kernels.HIT, kernels.HITS, kernels.MAX_HITS]].tolist()
    return replace(found, hit_rows=hit, hits=hits, max_hits=most)


def most_of(met: int, squares: float) -> float:
    """Return an upper bound of the rows expected in a sample that has `met`, with 95 % confidence.

    `squares`: the sum over runs of the square of how many of them a run has. It holds for rows that
    lie alone and for those that lie together: the bound of a weighted sum of Poisson counts, the
    weight of one that was not met being a whole run. Source: Fay and Feuer, "Confidence intervals
    for directly standardized rates" (Statistics in Medicine 16, 1997); quantiles of the gamma
    distribution by Wilson and Hilferty (1931), to 1 %.
    """
    total, variance = met + RUN, squares + RUN**2
    shape = total**2 / variance
    quantile = shape * (1.0 - 1.0 / (9.0 * shape) + _NORMAL_95 / (3.0 * math.sqrt(shape))) ** 3
    return quantile * variance / total


def _estimated(found: Columns, apart: Sequence[Columns], rows: int, squares: float) -> Columns:
    """Return the figures of a column of `rows` from those of the rows that were read, and of each
    group of them. `squares`: as `most_of`, of rows that are zero or not finite."""
    read = found.read or 1
    if read == rows:
        return found
    scale, left = rows / read, math.sqrt(1.0 - read / rows)
    zero, bad = found.zero or 0, found.not_finite or 0

    def error(values: Sequence[float | None]) -> float:
        """Return the standard error of a mean of equal groups; `left`: of the rows not read."""
        known = [value for value in values if value is not None]
        if len(known) < 2:
            return 0.0
        return left * float(np.std(known, ddof=1)) / math.sqrt(len(known))

    def counted(each: Sequence[int | None]) -> float:
        # None in the sample is not none, and all are not all: the error is at least that of a row.
        return max(scale, error([(own or 0) * len(apart) * scale for own in each]))

    def most(met: int) -> int:
        # Rows that were read and are others are known to be.
        highest = most_of(met, min(squares, RUN * float(met))) * scale
        return min(math.ceil(highest), rows - read + met)

    return replace(
        found,
        rows=rows,
        zero=round(zero * scale),
        zero_most=most(zero),
        zero_error=counted([each.zero for each in apart]),
        not_finite=round(bad * scale),
        not_finite_most=most(bad),
        not_finite_error=counted([each.not_finite for each in apart]),
        mean_error=error([each.mean for each in apart]),
        hit_mean_error=error([each.hit_mean for each in apart]),
        unhit_mean_error=error([each.unhit_mean for each in apart]),
    )


def _bounded(found: Duplicates, repeated: NDArray[np.int64], rows: int) -> Duplicates:
    """Return the figures of a sample, and by its equal rows which share of `rows` may have a twin.

    Two rows are both read with a chance of (read / rows)^2 = f^2. If each content that was met
    twice stands for 2 / f^2 rows, and one met k > 2 times for k / f, then a group of c rows is
    expected to stand for c + c (c - 2) (1 - f)^(c - 1): never for less than it has. Where a stretch
    of rows is there twice, equal pairs are found in runs: `_TOGETHER` on average.
    """
    if found.rows < 2:
        return found
    more = repeated[repeated > 2]
    met = (len(repeated) - len(more)) / _TOGETHER
    pairs = _TOGETHER * (met + 2.0 * math.sqrt(met) + _MET)
    larger = float(more.sum()) + 2.0 * math.sqrt(float((more**2).sum()))
    twins = (2.0 * pairs * (rows - 1) / (found.rows - 1) + larger) / found.rows
    return replace(found, twin_share=min(1.0, twins), twin_share_error=0.0, bound=True)
