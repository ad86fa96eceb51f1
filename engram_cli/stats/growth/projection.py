"""Distinct n-grams at any number of tokens: a `growth` section in, the law behind it evaluated.

The section holds points inside the corpus and two beyond it, by the law of `growth.curve`; those
two give back its slope and its bend, so that every other point is on the same curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """About `distinct` n-grams in so many tokens, with its standard error; `factor` times the
    tokens that were counted."""

    distinct: float
    error: float
    factor: float


def project(entry: Mapping[str, Any], tokens: float) -> Projection | None:
    """The distinct n-grams of an order's `growth` entry at `tokens`.

    None where the corpus was too small to say anything beyond it. Raises KeyError, TypeError,
    ValueError or IndexError for a damaged section.
    """
    counted = float(entry["tokens"][-1])
    known = float(entry["distinct"][-1])
    if not (counted > 0 and known > 0):
        raise ValueError("the growth curve is empty")
    if tokens <= counted:
        return _inside(entry, tokens, counted)
    beyond = entry["extrapolated"]
    if not beyond:
        return None
    near, far = beyond[0], beyond[1]
    step = math.log(float(near["factor"]))
    first = math.log(float(near["distinct"]) / known)
    second = math.log(float(far["distinct"]) / known)
    # The rise over k steps is a (1 + q + ... + q^(k-1)): q is what the second step keeps.
    keeps = second / first - 1.0 if first > 0 else 0.0
    steps = math.log(tokens / counted) / step
    rise = first * (steps if keeps >= 1.0 else (1.0 - keeps**steps) / (1.0 - keeps))
    errors = [math.log1p(float(each["error"]) / float(each["distinct"])) for each in beyond[:2]]
    miss = float(np.interp(steps, [0.0, 1.0, 2.0], [0.0, *errors]))
    if steps > 2.0:
        miss = errors[1] * steps / 2.0
    distinct = known * math.exp(rise)
    return Projection(distinct=distinct, error=distinct * math.expm1(miss), factor=tokens / counted)


def _inside(entry: Mapping[str, Any], tokens: float, counted: float) -> Projection:
    """Between the points of the curve, straight in the logarithms of both axes.

    Before its first point lies what two bounds allow: growth slows down, so the curve is above the
    straight line from a single token on, and no token brings more than one n-gram. The middle of
    them is given, half their distance as its error.
    """
    xs = np.log(np.maximum(np.array(entry["tokens"], dtype=np.float64), 1.0))
    met = np.maximum.accumulate(np.array(entry["distinct"], dtype=np.float64))
    ys = np.log(np.maximum(met, 1.0))
    at = math.log(max(tokens, 1.0))
    factor = tokens / counted
    if at < xs[0]:
        most = min(max(tokens, 1.0), float(np.exp(ys[0])))
        least = min(math.exp(float(ys[0]) * at / float(xs[0])), most)
        return Projection(
            distinct=math.sqrt(least * most), error=(most - least) / 2.0, factor=factor
        )
    errors = np.array(entry["error"], dtype=np.float64)
    distinct = min(math.exp(float(np.interp(at, xs, ys))), max(tokens, 1.0))
    return Projection(distinct=distinct, error=float(np.interp(at, xs, errors)), factor=factor)
