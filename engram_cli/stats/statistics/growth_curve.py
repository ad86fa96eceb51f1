"""Heaps' curve and where it leads: points in the corpus, and beyond it, each with one error.

Inside the corpus the error is that of the sample of n-grams and of which segments come first.
Beyond it, the error is how far the law misses inside this very curve. The law is a bent power law:
the slope of log distinct over log tokens falls by the same factor for every factor of tokens. A
plain power law keeps the slope it ends with, and predicts too much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.sampling.ideal import ideal_occupied

BINS = 4096  # of the arrival times
FACTORS = (10, 100)
# The fit sees the last part of the curve, from 1/SPAN of the tokens on; steps are even in log.
SPAN, STEPS, LEAST_POINTS = 64, 33, 8
LEAST_BINS = 32  # with segments in them, which say how unlike they are
LEAST_MISS = 0.03  # of the law, in log distinct for each factor e: three trials may agree by chance
# Fitted up to the first share of the tokens, what does the law predict for the second one?
TRIALS = ((0.1, 1.0), (0.25, 1.0), (0.05, 0.5))

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OccupiedRows:
    """The occupied rows of the first head of an order in one layer, at each point of the curve."""

    layer: int
    rows: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OccupiedShare:
    """The share of a head's rows that a larger corpus would occupy."""

    layer: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolation:
    """What a corpus of the same kind, `factor` times larger, would hold."""

    factor: int
    tokens: int
    distinct: float
    error: float
    occupied: tuple[OccupiedShare, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderGrowth:
    """The curve of an order: `distinct` n-grams, with standard `error`, after `tokens` tokens."""

    order: int
    tokens: tuple[int, ...]
    distinct: tuple[float, ...]
    error: tuple[float, ...] = ()
    occupied: tuple[OccupiedRows, ...] = ()
    extrapolated: tuple[Extrapolation, ...] = ()

    @property
    def errors(self) -> tuple[float, ...]:
        """The standard errors; zeros in statistics of earlier versions, which have none."""
        return self.error or (0.0,) * len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnRows:
    """A column of `rows` rows: `met` int64[BINS] of the `followed` ones are occupied by then."""

    rows: int
    followed: int
    met: NDArray[np.int64]


def growth_curve(
    order: int,
    arrived: NDArray[np.int64],
    met: NDArray[np.int64],
    share: float,
    columns: Mapping[int, ColumnRows],
) -> OrderGrowth:
    """Return points that double from one to the next, and the extrapolations.

    `arrived` int64[BINS]: tokens by their arrival; `met` int64[BINS]: the n-grams of the sample
    met by the end of each bin, a `share` of all; `columns`: layer -> the rows of its first head.
    """
    total = np.cumsum(arrived)
    bins = [at for at in _doubling() if total[at - 1]]
    spread = _order_variances(arrived, met, share, bins)
    tokens, distinct = total.astype(np.float64), met / share
    rate = _miss_rate(tokens, distinct)
    return OrderGrowth(
        order=order,
        tokens=tuple(int(total[at - 1]) for at in bins),
        distinct=tuple(int(met[at - 1]) / share for at in bins),
        error=tuple(
            math.sqrt(int(met[at - 1]) * (1 - share) / share**2 + 2.0 * variance)
            for at, variance in zip(bins, spread, strict=True)
        ),
        occupied=tuple(
            OccupiedRows(
                layer=layer,
                rows=tuple(int(rows.met[at - 1]) * rows.rows / rows.followed for at in bins),
            )
            for layer, rows in columns.items()
        ),
        extrapolated=()
        if rate is None
        else tuple(_extrapolated(tokens, distinct, factor, rate, columns) for factor in FACTORS),
    )


def _extrapolated(
    tokens: Floats, distinct: Floats, factor: int, rate: float, columns: Mapping[int, ColumnRows]
) -> Extrapolation:
    # A repetitive corpus bends the law down; n-grams that were met do not go away.
    guess = max(_predict(tokens, distinct, BINS, factor * tokens[-1]), float(distinct[-1]))
    return Extrapolation(
        factor=factor,
        tokens=int(factor * tokens[-1]),
        distinct=guess,
        error=guess * math.expm1(rate * math.log(factor)),
        occupied=tuple(
            OccupiedShare(layer=layer, share=ideal_occupied(rows.rows, guess) / rows.rows)
            for layer, rows in columns.items()
        ),
    )


def _doubling() -> list[int]:
    """Return 1, 2, 4, 8, ... bins, and between them once the steps are fine enough."""
    found = {BINS >> shift for shift in range(BINS.bit_length())}
    found |= {3 * BINS >> shift for shift in range(2, BINS.bit_length() - 1)}
    return sorted(found)


def _order_variances(
    tokens: NDArray[np.int64], met: NDArray[np.int64], share: float, bins: Sequence[int]
) -> list[float]:
    """Return the variance of the n-grams met by the end of `bins`, over the segments' order.

    A jackknife: what the last bins to arrive brought that nothing had before is what the part would
    lack without them. How far it lies from the mean of as many tokens, less what the sample of
    n-grams adds, is squared and summed. Source: Efron and Stein, "The jackknife estimate of
    variance" (1981).
    """
    brought = np.diff(met, prepend=0).astype(np.float64)
    filled = np.concatenate([[0], np.cumsum(tokens > 0)])
    found = []
    for at in bins:
        enough = int(np.searchsorted(filled, filled[at // 2] + LEAST_BINS))
        window = slice(at // 2, max(2 * at, enough))
        new, read = brought[window], tokens[window].astype(np.float64)
        if at == BINS or read.sum() == 0:
            found.append(0.0)
            continue
        off = new - new.sum() / read.sum() * read
        spread = max(float(off @ off) - new.sum() * (1 - share), 0.0) / share**2
        found.append(spread * at / len(new) * (1 - at / BINS))
    return found


def _miss_rate(tokens: Floats, distinct: Floats) -> float | None:
    """Return by how much predictions inside the curve miss, None if it has too few points.

    The root of their mean square, in log distinct for each factor e of tokens.
    """
    misses = []
    for known, wanted in TRIALS:
        last, target = round(BINS * known), round(BINS * wanted)
        if _fit(tokens, distinct, last) is None:
            return None
        guess = _predict(tokens, distinct, last, tokens[target - 1])
        far = math.log(tokens[target - 1] / tokens[last - 1])
        misses.append(math.log(guess / distinct[target - 1]) / far if far > 0 else 0.0)
    return max(math.sqrt(sum(miss * miss for miss in misses) / len(misses)), LEAST_MISS)


def _predict(tokens: Floats, distinct: Floats, last: int, target: float) -> float:
    """Return the distinct n-grams among `target` tokens, fitted on the first `last` bins."""
    fit = _fit(tokens, distinct, last)
    assert fit is not None
    slope, bend = fit
    far = math.log(target / tokens[last - 1])
    rise = slope * (-math.expm1(-bend * far) / bend if bend > 1e-9 else far)
    return float(distinct[last - 1]) * math.exp(rise)


def _fit(tokens: Floats, distinct: Floats, last: int) -> tuple[float, float] | None:
    """Return the slope at the end of the first `last` bins, and by which rate it falls.

    A parabola through log distinct over log tokens, weighted by how many n-grams were met. None
    if there are too few points.
    """
    shares = np.geomspace(1 / SPAN, 1.0, STEPS)
    bins = np.unique(np.round(last * shares).astype(np.int64))
    bins = bins[bins > 0]
    bins = bins[distinct[bins - 1] > 0]
    x = np.log(tokens[bins - 1] / tokens[last - 1]) if len(bins) else np.empty(0)
    if len(np.unique(x)) < LEAST_POINTS:
        return None
    y = np.log(distinct[bins - 1] / distinct[last - 1])
    weights = np.sqrt(distinct[bins - 1] / distinct[last - 1])
    for degree in (2, 1):
        powers = np.stack([x**power for power in range(degree + 1)], axis=1)
        fitted = np.linalg.lstsq(powers * weights[:, None], y * weights, rcond=None)[0]
        bent = float(fitted[2]) if degree == 2 else 0.0
        if bent <= 0.0:  # a law that bends upwards is noise
            break
    slope = min(max(float(fitted[1]), 0.0), 1.0)
    return slope, (-2.0 * bent / slope if slope > 0.0 else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """About `distinct` n-grams, with the standard error."""

    distinct: float
    error: float


def project(curve: OrderGrowth, tokens: float) -> Projection | None:
    """Return the distinct n-grams at `tokens`.

    The two points beyond the corpus give back slope and bend of the law, so any other point is on
    the same curve. None if the corpus was too small to say anything beyond it. Raises ValueError or
    IndexError for a damaged curve.
    """
    counted, known = curve.tokens[-1], curve.distinct[-1]
    if not (counted > 0 and known > 0):
        raise ValueError("the growth curve is empty")
    if tokens <= counted:
        return _inside(curve, tokens)
    if not curve.extrapolated:
        return None
    near, far = curve.extrapolated[0], curve.extrapolated[1]
    step = math.log(near.factor)
    first, second = math.log(near.distinct / known), math.log(far.distinct / known)
    # The rise over k steps is a (1 + q + ... + q^(k-1)): q is what the second step keeps.
    keeps = second / first - 1.0 if first > 0 else 0.0
    steps = math.log(tokens / counted) / step
    rise = first * (steps if keeps >= 1.0 else (1.0 - keeps**steps) / (1.0 - keeps))
    miss = math.log1p(far.error / far.distinct) * steps / 2.0
    distinct = known * math.exp(rise)
    return Projection(distinct=distinct, error=distinct * math.expm1(miss))


def _inside(curve: OrderGrowth, tokens: float) -> Projection:
    """Return a point inside the curve, on straight lines in the logarithms of both axes.

    Before its first point lies what two bounds allow: growth slows down, so the curve is above the
    straight line from a single token on, and no token brings more than one n-gram. The middle of
    them is returned, half their distance as its error.
    """
    xs = np.log(np.maximum(np.array(curve.tokens, dtype=np.float64), 1.0))
    ys = np.log(np.maximum(np.maximum.accumulate(curve.distinct), 1.0))
    at = math.log(max(tokens, 1.0))
    if at < xs[0]:
        most = min(max(tokens, 1.0), float(np.exp(ys[0])))
        least = min(math.exp(float(ys[0]) * at / float(xs[0])), most)
        return Projection(distinct=math.sqrt(least * most), error=(most - least) / 2.0)
    distinct = min(math.exp(float(np.interp(at, xs, ys))), max(tokens, 1.0))
    return Projection(distinct=distinct, error=float(np.interp(at, xs, curve.errors)))
