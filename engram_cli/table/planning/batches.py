"""How many different rows a batch looks up: windows that were measured in, a share out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShare:
    """The share of a batch's look-ups that are different rows, with its standard error.

    `at_most`: the widest window measured is shorter than the batch, which repeats more.
    """

    share: float
    error: float
    at_most: bool


def batch_share(
    windows: Sequence[Mapping[str, Any]],
    batch: int,
    sizes: Mapping[int, tuple[float, float]],
) -> BatchShare | None:
    """The mean over the orders in `sizes`, of `batch` tokens that follow one another.

    `windows`: as in the section `locality`; `sizes`: by order the rows of a head that was counted
    and of one that is planned. None where an order has no window of at most `batch` tokens.
    Raises KeyError, TypeError or ValueError for damaged windows.
    """
    shares, errors, widest = [], [], batch
    for order, (counted, planned) in sizes.items():
        fitting = [w for w in windows if w["order"] == order and w["tokens"] <= batch]
        if not fitting:
            return None
        tokens = max(int(window["tokens"]) for window in fitting)
        widest = min(widest, tokens)
        for window in fitting:
            if window["tokens"] == tokens:
                shares.append(resized(float(window["distinct_share"]), tokens, counted, planned))
                errors.append(float(window["error"]))
    if not shares:
        return None
    return BatchShare(
        share=math.fsum(shares) / len(shares),
        error=math.fsum(errors) / len(errors),  # all are of the same windows
        at_most=widest < batch,
    )


def resized(share: float, tokens: int, counted: float, planned: float) -> float:
    """The share of `tokens` look-ups that are different rows with `planned` rows instead.

    As an ideal hash fills rows: u n-grams met m (1 - e^(-u/m)) of m rows.
    """
    met = share * tokens / counted
    ngrams = float(tokens)
    if met < 1.0:
        ngrams = min(-counted * math.log1p(-met), ngrams)
    return min(-planned * math.expm1(-ngrams / planned) / tokens, 1.0)
