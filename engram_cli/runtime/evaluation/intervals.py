"""The confidence interval of a mean loss, or of a difference of two, over documents.

Documents are the independent units: losses of tokens of one document depend on each other. The mean
weights documents by their tokens, so it is a ratio of two sums over documents, and its standard
error is that of a ratio estimator (linearised: Cochran, Sampling Techniques, chapter 6). The
interval is Student's t, with as many degrees of freedom as the token weights leave: Kish's
effective number of documents, less one. Differences are paired, since both losses of a document
are in its term. There is nothing random in it, and it needs sums alone, in constant memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
# Simpson's rule on 0..1.
_PLACES = np.linspace(0.0, 1.0, 513)
_WEIGHTS = np.array([1.0, *(4.0, 2.0) * 255, 4.0, 1.0]) / (3 * 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A `mean` in nats per token, its standard `error`, and the interval from `low` to `high`.

    All but the mean are None with fewer than two documents' worth of weight.
    """

    mean: float
    error: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


def ratio_interval(
    total: float, tokens: float, squares: float, cross: float, tokens_squared: float
) -> Interval:
    """Return the interval of total / tokens from sums over documents.

    With y_d the summed loss (or difference) of document d and n_d its tokens: `total` is the sum
    of y_d, `tokens` of n_d, `squares` of y_d^2, `cross` of y_d n_d, `tokens_squared` of n_d^2.
    """
    mean = total / tokens if tokens else 0.0
    effective = tokens * tokens / tokens_squared if tokens_squared else 0.0
    if effective < 2.0 - 1e-9:
        return Interval(mean=mean)
    residuals = max(squares - 2.0 * mean * cross + mean * mean * tokens_squared, 0.0)
    error = math.sqrt(residuals * effective / (effective - 1.0)) / tokens
    reach = student_t(LEVEL, effective - 1.0) * error
    return Interval(mean=mean, error=error, low=mean - reach, high=mean + reach)


def student_t(level: float, freedom: float) -> float:
    """Return t such that Student's t with `freedom` degrees lies in -t..t with chance `level`.

    `freedom` is 1 or more, but for rounding; the result is accurate to 1e-6 of its value.
    """
    low, high = 0.0, 1.0
    while _inside(high, freedom) < level:
        low, high = high, 2.0 * high
    for _ in range(40):
        middle = 0.5 * (low + high)
        if _inside(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _inside(t: float, freedom: float) -> float:
    """Return the chance of -t..t.

    With t = sqrt(freedom) tan(a) its density is that of cos(a)^(freedom - 1) over angles.
    """
    end = math.atan(t / math.sqrt(freedom))
    heights = np.cos(_PLACES * end) ** (freedom - 1.0)
    constant = math.lgamma((freedom + 1.0) / 2.0) - math.lgamma(freedom / 2.0)
    return 2.0 * math.exp(constant) / math.sqrt(math.pi) * end * float(_WEIGHTS @ heights)
