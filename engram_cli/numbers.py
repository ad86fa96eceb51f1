"""Numbers as people read them, on the terminal and on a page."""

from __future__ import annotations

import math
from collections.abc import Iterable

_STEPS = ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
_THIN = "\u202f"  # keeps a number and its unit on one line


def count(value: float) -> str:
    """Return a whole number with thousands separated: 63,712,480."""
    return f"{value:,.0f}"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: 1 file, 2 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def brief(value: float) -> str:
    """Return a count in three digits: 950, 1.2 k, 63.7 M."""
    for step, letter in _STEPS:
        if abs(value) >= step * 0.9995:
            scaled = value / step
            digits = 0 if abs(scaled) >= 99.95 else 1
            return f"{scaled:.{digits}f}{_THIN}{letter}".replace(f".0{_THIN}", _THIN)
    return f"{value:.3g}" if value % 1 else f"{value:.0f}"


def bytes_text(value: float) -> str:
    """Return a number of bytes: 950 B, 31.5 MB."""
    for step, letter in _STEPS:
        if value >= step:
            return f"{value / step:.1f} {letter}B"
    return f"{value:.0f} B"


def percent(share: float, digits: int | None = None) -> str:
    """Return a share 0..1 in percent; small shares get more digits unless `digits` is given."""
    if digits is None:
        size = abs(share)
        digits = 1 if size >= 0.0995 or size == 0 else 2 if size >= 0.00995 else 3
        if 0 < size < 1e-5:
            return f"{100 * share:.1e}{_THIN}%"
    return f"{100 * share:.{digits}f}{_THIN}%"


def seconds_text(value: float) -> str:
    """Return a time: 12.3 s, 40 ms."""
    if value >= 0.095:
        return f"{value:,.1f} s"
    return f"{1000 * value:.0f} ms" if value >= 5e-4 else "less than 1 ms"


def mean(values: Iterable[float]) -> float:
    """Return the mean; 0 for no values."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else 0.0
