"""Which rows are used and which n-grams share a row, head by head, compared with an ideal hash.

An n-gram of the sample is alone on its row exactly when the row has no more hits than it has
occurrences. Shares of n-grams come from the sample of n-grams, shares of occurrences from
`sampling.by_use`. The ideal is a random hash of as many n-grams.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.charts import Axis, LineChart, grouped, order_curve
from engram_cli.hashing.layout import LayerHash
from engram_cli.registry import LazyModule
from engram_cli.stats.sampling.by_use import Uses
from engram_cli.stats.sampling.distinct import NgramSample
from engram_cli.stats.sampling.ideal import (
    ALARM,
    Flag,
    flag,
    ideal_occupied,
    ideal_occupied_error,
    ideal_shared,
)
from engram_cli.stats.sampling.known import SampleHits
from engram_cli.stats.statistic import Results, Statistic
from engram_cli.stats.totals import FULL, Counts
from engram_cli.view import Estimate, Row, Table, View, counts, percents

kernels = LazyModule("engram_cli.stats.counting.kernels")

_STEP = 2**17  # n-grams hashed together
_MOST_LAYERS = 4  # drawn
_SIGMAS = 2.0
_MARKS = {"above": "+", "below": "-", None: ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnStats:
    """One head of one order of one layer.

    `occupied` rows of `rows` were looked up, where an ideal hash has `ideal_occupied` with a
    standard error of `ideal_occupied_error`; `flag` says that they lie too far apart for one: some
    column of an ideal hash is flagged with a chance of at most `ideal.ALARM`.
    `shared` is the share of the distinct n-grams whose row holds another one too,
    `shared_occurrences` that of all occurrences; both have standard errors, and `ideal_shared` is
    the expectation of both. `full_rows` counters reached 2**32-1 and stayed there.
    """

    layer: int
    order: int
    head: int
    rows: int
    occupied: int
    ideal_occupied: float
    ideal_occupied_error: float = 0.0
    flag: Flag | None = None
    shared: float
    shared_error: float
    shared_occurrences: float
    shared_occurrences_error: float
    ideal_shared: float
    max_hits: int
    full_rows: int


def column_stats(
    counts: Counts, samples: Sequence[SampleHits], uses: Sequence[Uses | None]
) -> tuple[ColumnStats, ...]:
    """Return the results of each column, by layer, order and head.

    `samples`: one for each order. `uses`: what stands for all occurrences of an order; None where
    the sample does.
    """
    return tuple(_columns(counts, samples, uses))


def _shared_by_head(hits: SampleHits, entry: LayerHash) -> NDArray[np.bool_]:
    """Return bool[H, S]: whether another n-gram falls on an n-gram's row, in each head."""
    times = hits.sample.counts
    shared = np.empty((hits.counts.layout.heads, len(times)), dtype=np.bool_)
    for begin in range(0, shared.shape[1], _STEP):
        step = slice(begin, begin + _STEP)
        shared[:, step] = times[step] < hits.of(entry, step)
    return shared


def _columns(
    counts: Counts, samples: Sequence[SampleHits], uses: Sequence[Uses | None]
) -> Iterator[ColumnStats]:
    heads = counts.layout.heads
    chance = ALARM / (len(counts.layout.layers) * counts.layout.columns)
    for entry in counts.layout.layers:
        hits = counts.hits[entry.layer]
        for index, (found, use) in enumerate(zip(samples, uses, strict=True)):
            sample, shared = found.sample, _shared_by_head(found, entry)
            clean = None if use is None else use.clean(counts, entry)
            for head in range(heads):
                column = index * heads + head
                begin, modulus = entry.offsets[column], entry.moduli[column]
                own = hits[begin : begin + modulus]
                if use is None or clean is None:
                    by_use = share_of_occurrences(sample, shared[head])
                else:
                    by_use = use.mean(np.ones(len(use.counts)), -clean[head].astype(np.float64))
                yield _column(entry.layer, head, sample, own, shared[head], by_use, chance)


def _column(
    layer: int,
    head: int,
    sample: NgramSample,
    hits: NDArray[np.uint32],
    shared: NDArray[np.bool_],
    by_use: tuple[float, float],
    chance: float,
) -> ColumnStats:
    sums = np.zeros(6, dtype=np.uint64)
    kernels.sum_column(hits, sums)
    occupied, largest, full, *_ = map(int, sums)
    by_ngram, by_ngram_error = share_of_ngrams(sample, shared)
    ideal = ideal_occupied(len(hits), sample.distinct)
    ideal_error = ideal_occupied_error(len(hits), sample.distinct, sample.distinct_error)
    return ColumnStats(
        layer=layer,
        order=sample.order,
        head=head,
        rows=len(hits),
        occupied=occupied,
        ideal_occupied=ideal,
        ideal_occupied_error=ideal_error,
        flag=flag(occupied, len(hits), sample.distinct, sample.distinct_error, chance),
        shared=by_ngram,
        shared_error=by_ngram_error,
        shared_occurrences=by_use[0],
        shared_occurrences_error=by_use[1],
        ideal_shared=ideal_shared(len(hits), sample.distinct),
        max_hits=min(largest, FULL),
        full_rows=full,
    )


def share_of_ngrams(sample: NgramSample, shared: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share of distinct n-grams that are `shared` bool[S], and its standard error."""
    size = len(shared)
    if size == 0:
        return 0.0, 0.0
    share = int(np.count_nonzero(shared)) / size
    if sample.exact:
        return share, 0.0
    unseen = max(1.0 - size / sample.distinct, 0.0)
    return share, math.sqrt(unseen * _spread(share, size) / (size - 1))


def share_of_occurrences(sample: NgramSample, shared: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share of the occurrences whose n-gram is `shared` bool[S], and its standard error.

    Exact for a complete sample. Otherwise the error, that of a ratio, is too small where frequent
    n-grams decide, which the sample does not know. Source: Cochran, "Sampling Techniques"
    (1977), section 6.3.
    """
    size = len(shared)
    counts = sample.counts.astype(np.float64)
    total = float(np.sum(counts))
    if size == 0:
        return 0.0, 0.0
    share = float(np.sum(counts[shared])) / total
    if sample.exact:
        return share, 0.0
    unseen = max(1.0 - size / sample.distinct, 0.0)
    residual = float(np.sum((counts * (shared - share)) ** 2))
    return share, math.sqrt(unseen * residual * size / (size - 1)) / total


def _spread(share: float, size: int) -> float:
    """Return the variance of a yes or no that `share` of `size` say; not 0 if all agree."""
    seen = (share * size + 1.0) / (size + 2.0)
    return seen * (1.0 - seen)


def view(columns: tuple[ColumnStats, ...], results: Results) -> Iterable[View]:
    """Draw how far each head lies from the ideal, and a table of all columns."""
    layers = grouped(columns, lambda column: column.layer)
    charts = [
        Row(_charts(layer, f", layer {layer}" if len(layers) > 1 else "", own))
        for layer, own in list(layers.items())[:_MOST_LAYERS]
    ]
    flagged = sum(1 for column in columns if column.flag)
    verdict = "In every head the rows used lie within the interval of a random hash."
    if flagged:
        verdict = (
            f"The rows used by {flagged} of {len(columns)} heads lie outside the interval of a "
            "random hash: try another --seed."
        )
    if len(layers) > _MOST_LAYERS:
        verdict += f" The first {_MOST_LAYERS} of {len(layers)} layers are drawn."
    yield View(
        name="occupancy",
        title="Heads compared with a random hash",
        lead=f"{verdict} Dots that scatter around 0 are what chance gives; one head far from "
        "the others meets this corpus badly.",
        parts=(*charts, _table(columns, flagged > 0)),
    )


def _table(columns: Sequence[ColumnStats], marked: bool) -> Table:
    names = (
        *counts("layer", "order", "head", "rows"),
        *percents("rows used", "ideal", digits=2),
        *percents("n-grams sharing", "ideal", digits=1),
        *percents("by use", digits=2),
        *counts("most hits"),
    )
    rows = tuple(
        (
            *(each.layer, each.order, each.head, each.rows),
            Estimate(each.occupied / each.rows, mark=_MARKS[each.flag]),
            *(each.ideal_occupied / each.rows, each.shared, each.ideal_shared),
            Estimate(each.shared_occurrences, each.shared_occurrences_error),
            each.max_hits,
        )
        for each in columns
    )
    note = "+ and - mark heads that differ from it" if marked else ""
    title = "Used rows, shared rows, and an ideal hash"
    return Table(title, names, rows, note=note, folded=True, where="verbose")


def _charts(layer: int, suffix: str, columns: list[ColumnStats]) -> tuple[LineChart, ...]:
    """Return the deviations of used rows and of sharing by use."""
    heads = max(each.head for each in columns) + 1
    by_order = grouped(columns, lambda column: column.order)
    used = {
        order: [(float(each.head), _deviation(each)) for each in own]
        for order, own in by_order.items()
    }
    shared = {
        order: [
            (float(each.head), each.shared_occurrences - each.ideal_shared,
             _SIGMAS * each.shared_occurrences_error)
            for each in own
        ]
        for order, own in by_order.items()
    }  # fmt: skip
    most = max((abs(y) for points in used.values() for _, y in points), default=0.0)
    x = Axis("head", labels=tuple(f"{head}" for head in range(heads)))
    places = tuple(f"head {head}" for head in range(heads))
    return (
        LineChart(
            name=f"occupancy-{layer}",
            title=f"Rows used{suffix}",
            description="A dot for each head: how many standard errors its used rows lie above or "
            "below those of a random hash. Within 3 of 0 is what chance gives.",
            note="in standard errors from a random hash; within 3 is chance",
            x=x,
            y=Axis("standard errors", "decimal", low=-max(4.0, most), high=max(4.0, most)),
            curves=tuple(
                order_curve(order, points, dots=True, line=False) for order, points in used.items()
            ),
            places=places,
            height=260,
        ),
        LineChart(
            name=f"shared-{layer}",
            title=f"Look-ups sharing{suffix}",
            description="A dot for each head: the share of look-ups that meet a shared row, minus "
            "that of a random hash. Few frequent n-grams decide how far a head lies from 0.",
            note="in points from a random hash; frequent n-grams decide",
            x=x,
            y=Axis("points", "points"),
            curves=tuple(
                order_curve(
                    order,
                    [(head, share) for head, share, _ in points],
                    [(head, share - e, share + e) for head, share, e in points if e],
                    dots=True,
                    line=False,
                )
                for order, points in shared.items()
            ),
            places=places,
            height=260,
        ),
    )


def _deviation(each: ColumnStats) -> float:
    """Return how many standard errors the used rows lie from the ideal.

    Statistics of earlier versions have no error; then it is that of the rows alone.
    """
    error = each.ideal_occupied_error or max(each.ideal_occupied, 1.0) ** 0.5
    return (each.occupied - each.ideal_occupied) / error


COLUMNS = Statistic(
    key="columns",
    kind=tuple[ColumnStats, ...],
    compute=lambda counted: column_stats(counted.counts, counted.hits, counted.uses),
    view=view,
)
