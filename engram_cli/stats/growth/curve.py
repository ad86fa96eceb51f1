"""Heaps' curve and where it leads: arrivals in, points and extrapolations with their errors out.

The law that is fitted is a bent power law: the slope of log distinct over log tokens falls by the
same factor for every factor of tokens. A plain power law keeps the slope it ends with, and says too
much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.growth.arrivals import BINS, NgramArrivals, RowArrivals
from engram_cli.stats.ideal import ideal_occupied

FACTORS = (10, 100)
# The fit sees the last part of the curve, from 1/SPAN of the tokens on; steps are even in log.
SPAN, STEPS, LEAST_POINTS = 64, 33, 8
GROUPS = 16
LEAST_BINS = 32  # with segments in them, which say how unlike they are
LEAST_MISS = 0.03  # of the law, in log distinct for each factor e: three trials may agree by chance
# Fitted up to the first share of the tokens, what does the law say of the second one?
TRIALS = ((0.1, 1.0), (0.25, 1.0), (0.05, 0.5))
_BIN_SHIFT = np.uint64(64 - BINS.bit_length() + 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """The growth of one order.

    `tokens` int64[BINS]: by their arrival; `ngrams`: the sample; `rows`: layer -> those followed.
    """

    order: int
    tokens: NDArray[np.int64]
    ngrams: NgramArrivals
    rows: Mapping[int, RowArrivals]

    def section(self) -> dict[str, Any]:
        """Points that double from one to the next, and the extrapolations, as JSON values."""
        total = np.cumsum(self.tokens)
        met = _met(self.ngrams.arrivals)
        bins = [at for at in _doubling() if total[at - 1]]
        share = self.ngrams.share
        order = _order_variances(self.tokens, met, share)
        return {
            "order": self.order,
            "tokens": [int(total[at - 1]) for at in bins],
            "distinct": [int(met[at - 1]) / share for at in bins],
            "error": [
                math.sqrt(int(met[at - 1]) * (1 - share) / share**2 + 2.0 * order[at - 1])
                for at in bins
            ],
            "occupied": [
                {"layer": layer, "rows": _occupied(rows, bins)} for layer, rows in self.rows.items()
            ],
            "extrapolated": self._extrapolated(total.astype(np.float64), met / share),
        }

    def _extrapolated(
        self, tokens: NDArray[np.float64], distinct: NDArray[np.float64]
    ) -> list[dict[str, Any]]:
        rate = _miss_rate(tokens, distinct)
        if rate is None:
            return []
        groups = [each for each in self._groups() if _fit(tokens, each, BINS)]
        found = []
        for factor in FACTORS:
            # A repetitive corpus bends the law down; n-grams that were met do not go away.
            guess = max(_predict(tokens, distinct, BINS, factor * tokens[-1]), float(distinct[-1]))
            spread = [_predict(tokens, each, BINS, factor * tokens[-1]) for each in groups]
            noise = float(np.std(np.log(spread), ddof=1)) / math.sqrt(GROUPS) if groups else 0.0
            error = math.hypot(rate * math.log(factor), noise)
            found.append(
                {
                    "factor": factor,
                    "tokens": int(factor * tokens[-1]),
                    "distinct": guess,
                    "error": guess * math.expm1(error),
                    "occupied": [
                        {"layer": layer, "share": ideal_occupied(rows.rows, guess) / rows.rows}
                        for layer, rows in self.rows.items()
                    ],
                }
            )
        return found

    def _groups(self) -> list[NDArray[np.float64]]:
        """The curve as each of `GROUPS` parts of the sample sees it."""
        if self.ngrams.share == 1.0 or len(self.ngrams.hashes) < 64 * GROUPS:
            return []
        part = np.float64(GROUPS / self.ngrams.share)
        return [_met(self.ngrams.arrivals[group::GROUPS]) * part for group in range(GROUPS)]


def _doubling() -> list[int]:
    """1, 2, 4, 8, ... bins, and between them once the steps are fine enough."""
    found = {BINS >> shift for shift in range(BINS.bit_length())}
    found |= {3 * BINS >> shift for shift in range(2, BINS.bit_length() - 1)}
    return sorted(found)


def _met(arrivals: NDArray[np.uint64]) -> NDArray[np.int64]:
    """int64[BINS]: how many have arrived by the end of each bin."""
    bins = (arrivals >> _BIN_SHIFT).astype(np.int64)
    return np.cumsum(np.bincount(bins, minlength=BINS))


def _order_variances(
    tokens: NDArray[np.int64], met: NDArray[np.int64], share: float
) -> NDArray[np.float64]:
    """float64[BINS]: the variance of the n-grams met by each bin, had other segments come first.

    A jackknife: what the last bins to arrive brought that nothing had before is what the part would
    lack without them. How far it lies from the mean of as many tokens, less what the sample of
    n-grams adds, is squared and summed. Source: Efron and Stein, "The jackknife estimate of
    variance" (1981).
    """
    brought = np.diff(met, prepend=0).astype(np.float64)
    found = np.zeros(BINS)
    filled = np.concatenate([[0], np.cumsum(tokens > 0)])
    for at in range(1, BINS):
        enough = int(np.searchsorted(filled, filled[at // 2] + LEAST_BINS))
        window = slice(at // 2, max(2 * at, enough))
        new, read = brought[window], tokens[window].astype(np.float64)
        if read.sum() > 0:
            off = new - new.sum() / read.sum() * read
            spread = max(float(off @ off) - new.sum() * (1 - share), 0.0) / share**2
            found[at - 1] = spread * at / len(new) * (1 - at / BINS)
    return found


def _occupied(rows: RowArrivals, bins: list[int]) -> list[float]:
    """Of all rows of the column, how many are occupied by then."""
    met = _met(rows.arrivals[rows.arrivals != np.uint64(2**64 - 1)])
    return [int(met[at - 1]) * rows.rows / len(rows.arrivals) for at in bins]


def _miss_rate(tokens: NDArray[np.float64], distinct: NDArray[np.float64]) -> float | None:
    """By how much, in log distinct for each factor e of tokens, predictions inside the curve miss.

    The root of their mean square; None where the curve has too few points for that.
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


def _predict(
    tokens: NDArray[np.float64], distinct: NDArray[np.float64], last: int, target: float
) -> float:
    """The distinct n-grams among `target` tokens, fitted on the first `last` bins."""
    fit = _fit(tokens, distinct, last)
    assert fit is not None
    slope, bend = fit
    far = math.log(target / tokens[last - 1])
    rise = slope * (-math.expm1(-bend * far) / bend if bend > 1e-9 else far)
    return float(distinct[last - 1]) * math.exp(rise)


def _fit(
    tokens: NDArray[np.float64], distinct: NDArray[np.float64], last: int
) -> tuple[float, float] | None:
    """The slope at the end of the first `last` bins, and by which rate it falls.

    A parabola through log distinct over log tokens, weighted by how many n-grams were met.
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
