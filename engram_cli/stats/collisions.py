"""Which n-grams share a row: row hits and n-gram samples in, figures by order and by head out.

An n-gram of the sample is alone on its row exactly when the row has no more hits than it has
occurrences. Beside each figure stands what an ideal random hash would give for as many n-grams.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan, plan_layer
from engram_cli.hashing.layout import LayerHash
from engram_cli.stats import kernels
from engram_cli.stats.distinct import NgramSample
from engram_cli.stats.ideal import ALARM, Flag, flag, ideal_occupied, occupied_variance
from engram_cli.stats.totals import FULL, Counts

_STEP = 2**17  # n-grams hashed together


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderStats:
    """The n-grams of one order: `windows` occurrences of about `distinct` different ones."""

    order: int
    windows: int
    distinct: float
    distinct_error: float
    exact: bool
    sampled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnStats:
    """One head of one order of one layer.

    `occupied` rows of `rows` were looked up, where an ideal hash has `ideal_occupied` with a
    standard error of `ideal_occupied_error`; `flag` says that they lie too far apart for one: some
    column of an ideal hash is flagged with a chance of at most `ideal.ALARM`.
    `shared` is the share of the different n-grams whose row holds another one too,
    `shared_occurrences` that of all occurrences; both have standard errors, and `ideal_shared` is
    the expectation of both. `full_rows` counters reached 2**32-1 and stayed there.
    """

    layer: int
    order: int
    head: int
    rows: int
    occupied: int
    ideal_occupied: float
    ideal_occupied_error: float
    flag: Flag | None
    shared: float
    shared_error: float
    shared_occurrences: float
    shared_occurrences_error: float
    ideal_shared: float
    max_hits: int
    full_rows: int


def order_stats(counts: Counts, samples: Sequence[NgramSample] = ()) -> tuple[OrderStats, ...]:
    """The figures of each order; `samples` as in `column_stats`."""
    return tuple(
        OrderStats(
            order=sample.order,
            windows=counts.tokens,
            distinct=sample.distinct,
            distinct_error=sample.distinct_error,
            exact=sample.exact,
            sampled=len(sample.hashes),
        )
        for sample in samples or counts.samples
    )


def column_stats(counts: Counts, samples: Sequence[NgramSample] = ()) -> tuple[ColumnStats, ...]:
    """The figures of each column, by layer, order and head.

    `samples`: n-grams to go by in the place of those in `counts`, one sample an order.
    """
    return tuple(_columns(counts, samples or counts.samples))


def ideal_occupied_error(rows: int, ngrams: float, ngrams_error: float) -> float:
    """The standard error of the rows that `ngrams` n-grams, known to `ngrams_error`, occupy.

    The variance of the occupancy, and that of the n-grams times the slope e^-(n/m). At least one
    row: a few rows compared with an expectation of none say nothing.
    """
    by_ngrams = math.exp(-ngrams / rows) * ngrams_error
    return math.sqrt(max(occupied_variance(rows, ngrams) + by_ngrams**2, 1.0))


def ideal_shared(rows: int, ngrams: float) -> float:
    """The chance that some other of `ngrams` n-grams falls on a given one's row."""
    return -math.expm1(max(ngrams - 1.0, 0.0) * math.log1p(-1.0 / rows))


def sample_rows(sample: NgramSample, plan: LayerPlan, order: int, heads: int) -> NDArray[np.uint32]:
    """uint32[heads, S]: the head-local rows of the n-grams of a sample.

    The n-grams are laid end to end and hashed as one stream; every n-th position is one of them.
    """
    tokens = sample.tokens.reshape(-1)
    rows = np.empty((heads, len(tokens)), dtype=np.uint32)
    history = plan.multipliers.shape[1] - 1
    stream = np.concatenate([np.zeros(history, dtype=np.int32), tokens])
    plan.of_order(order).columns(stream, np.full(len(tokens), sample.order, dtype=np.uint8), rows)
    return rows[:, sample.order - 1 :: sample.order]


def shared_by_head(
    counts: Counts, entry: LayerHash, index: int, sample: NgramSample
) -> NDArray[np.bool_]:
    """bool[H, S]: whether another n-gram falls on an n-gram's row, for each head of an order."""
    heads = counts.layout.heads
    plan = plan_layer(counts.layout, entry)
    offsets = np.array(entry.offsets[index * heads : (index + 1) * heads], dtype=np.int64)
    shared = np.empty((heads, len(sample.counts)), dtype=np.bool_)
    for begin in range(0, shared.shape[1], _STEP):
        part = sample.take(slice(begin, begin + _STEP))
        rows = sample_rows(part, plan, index, heads) + offsets[:, None]
        shared[:, begin : begin + _STEP] = part.counts < counts.hits[entry.layer][rows]
    return shared


def _columns(counts: Counts, samples: Sequence[NgramSample]) -> Iterator[ColumnStats]:
    heads = counts.layout.heads
    chance = ALARM / (len(counts.layout.layers) * counts.layout.columns)
    for entry in counts.layout.layers:
        hits = counts.hits[entry.layer]
        for index, sample in enumerate(samples):
            shared = shared_by_head(counts, entry, index, sample)
            for head in range(heads):
                column = index * heads + head
                begin, modulus = entry.offsets[column], entry.moduli[column]
                own = hits[begin : begin + modulus]
                yield _column(entry.layer, head, counts.tokens, sample, own, shared[head], chance)


def _column(
    layer: int,
    head: int,
    windows: int,
    sample: NgramSample,
    hits: NDArray[np.uint32],
    shared: NDArray[np.bool_],
    chance: float,
) -> ColumnStats:
    sums = np.zeros(6, dtype=np.uint64)
    kernels.sum_column(hits, sums)
    occupied, largest, full, _, high, low = map(int, sums)
    counts = sample.counts.astype(np.float64)
    squares = Squares(
        all=_all_squares(high * 2**32 + low, windows, len(hits)), sampled=float(np.sum(counts**2))
    )
    by_ngram, by_ngram_error = share_of_ngrams(sample, shared)
    by_use, by_use_error = share_of_occurrences(sample, shared, windows, squares)
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
        shared_occurrences=by_use,
        shared_occurrences_error=by_use_error,
        ideal_shared=ideal_shared(len(hits), sample.distinct),
        max_hits=min(largest, FULL),
        full_rows=full,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Squares:
    """The sum of the squared counts of all n-grams (estimated from row hits) and of the sampled."""

    all: float
    sampled: float


def share_of_ngrams(sample: NgramSample, shared: NDArray[np.bool_]) -> tuple[float, float]:
    """The share of the different n-grams that are `shared` bool[S], and its standard error."""
    size = len(shared)
    if size == 0:
        return 0.0, 0.0
    share = int(np.count_nonzero(shared)) / size
    if sample.exact:
        return share, 0.0
    unseen = max(1.0 - size / sample.distinct, 0.0)
    return share, math.sqrt(unseen * _spread(share, size) / (size - 1))


def share_of_occurrences(
    sample: NgramSample, shared: NDArray[np.bool_], windows: int, squares: Squares
) -> tuple[float, float]:
    """The share of the occurrences whose n-gram is `shared` bool[S], and its standard error.

    A ratio estimate from the sample. Its error is the greater of two: the linearised error of the
    ratio, and the error if sharing does not depend on frequency, which knows about the frequent
    n-grams that the sample missed (they are in the squared row hits). Source of the first: Cochran,
    "Sampling Techniques" (1977), section 6.3.
    """
    size = len(shared)
    counts = sample.counts.astype(np.float64)
    total = float(np.sum(counts))
    if size == 0:
        return 0.0, 0.0
    share = float(np.sum(counts[shared])) / total
    missed = windows - total
    if sample.exact or missed <= 0.0:
        return share, 0.0
    residual = float(np.sum((counts * (shared - share)) ** 2))
    unseen = max(1.0 - size / sample.distinct, 0.0)
    linear = math.sqrt(unseen * residual * size / (size - 1)) / total
    others = max(squares.all - squares.sampled, 0.0)
    by_ngram = _spread(int(np.count_nonzero(shared)) / size, size)
    variance = by_ngram * (squares.sampled / total**2 + others / missed**2)
    return share, max(linear, missed / windows * math.sqrt(variance))


def _all_squares(row_squares: int, windows: int, rows: int) -> float:
    """The sum of the squared counts of all n-grams, from that of the rows they fall on."""
    mean = windows * windows / rows
    return max(row_squares - mean, 0.0) / (1.0 - 1.0 / rows)


def _spread(share: float, size: int) -> float:
    """The variance of a yes or no that `share` of `size` say; not 0 when all say the same."""
    seen = (share * size + 1.0) / (size + 2.0)
    return seen * (1.0 - seen)
