"""Numbers as a page shows them, and numbers as an untrusted document may give them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

_STEPS = ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def number(value: Any) -> float:
    """`value` when it is a finite number. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is not finite")
    return float(value)


def numbers(values: Any) -> list[float]:
    """A list of finite numbers. Raises TypeError or ValueError."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{type(values).__name__} is no list")
    return [number(value) for value in values]


def count(value: Any) -> str:
    """A whole number with its thousands parted."""
    return f"{number(value):,.0f}"


def times(entry: Any) -> str:
    """The count of an n-gram, as an upper bound where it is not `exact`."""
    return ("" if entry.get("exact", True) is True else "≤\u202f") + count(entry["count"])


def brief(value: float) -> str:
    """A count in three digits: 950, 1.2 k, 63.7 M."""
    for step, letter in _STEPS:
        if abs(value) >= step * 0.9995:
            scaled = value / step
            digits = 0 if abs(scaled) >= 99.95 else 1
            return f"{scaled:.{digits}f}\u202f{letter}".replace(".0\u202f", "\u202f")
    return f"{value:.3g}" if value % 1 else f"{value:.0f}"


def percent(share: float, digits: int | None = None) -> str:
    """A share 0..1 in percent; small ones with more digits."""
    if digits is None:
        size = abs(share)
        digits = 1 if size >= 0.0995 or size == 0 else 2 if size >= 0.00995 else 3
        if 0 < size < 1e-5:
            return f"{100 * share:.1e}\u202f%"
    return f"{100 * share:.{digits}f}\u202f%"


def ratio(value: float) -> str:
    """A quotient near 1."""
    return f"{value:.4f}"


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else 0.0
