"""Axes: values in, places along a line and honest ticks out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engram_cli.report.numbers import brief

Format = Callable[[float], str]
_MARGIN = 1.15  # of a logarithmic axis, beyond its values


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps `low`..`high` onto pixels `begin`..`end`; `ticks` are (value, label)."""

    low: float
    high: float
    begin: float
    end: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def __call__(self, value: float) -> float:
        """The pixel of `value`, kept inside the axis."""
        low, high = self._at(self.low), self._at(self.high)
        share = (self._at(max(value, self.low)) - low) / (high - low)
        return self.begin + min(max(share, 0.0), 1.0) * (self.end - self.begin)

    def _at(self, value: float) -> float:
        return math.log10(value) if self.log else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What an axis says. `low`, `high`: None for as far as the values go, but not past `most`."""

    title: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    format: Format = brief
    labels: tuple[str, ...] | None = None
    most: float | None = None

    def fit(self, values: Sequence[float], begin: float, end: float) -> Scale:
        """The scale of this axis for `values` between the pixels `begin` and `end`."""
        if self.labels is not None:
            ticks = tuple((float(i), label) for i, label in enumerate(self.labels))
            return Scale(
                low=-0.5, high=len(ticks) - 0.5, begin=begin, end=end, log=False, ticks=ticks
            )
        if self.log:
            return self._fit_log([v for v in values if v > 0], begin, end)
        low = self.low if self.low is not None else min(values, default=0.0)
        high = self.high if self.high is not None else max(values, default=1.0)
        if high <= low:
            high = low + (abs(low) or 1.0)
        step = nice_step((high - low) / max(2.0, abs(end - begin) / 46))
        if self.low is None:
            low = math.floor(low / step + 1e-9) * step
        if self.high is None:
            high = math.ceil(high / step - 1e-9) * step
        if self.most is not None:
            high = min(high, self.most)
        first = math.ceil(low / step - 1e-9)
        marks = [i * step for i in range(first, first + 40) if i * step <= high + step * 1e-9]
        ticks = tuple((mark, self.format(mark)) for mark in marks)
        return Scale(low=low, high=high, begin=begin, end=end, log=False, ticks=ticks)

    def _fit_log(self, values: Sequence[float], begin: float, end: float) -> Scale:
        least, most = min(values, default=1.0), max(values, default=10.0)
        low = self.low if self.low is not None else least / _MARGIN
        high = self.high if self.high is not None else most * _MARGIN
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        if last <= first:  # fewer than two powers of ten in between
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            low, high = 10.0**first, 10.0**last
        every = max(1, math.ceil((last - first) / max(2, abs(end - begin) / 40)))
        ticks = tuple((10.0**at, self.format(10.0**at)) for at in range(first, last + 1, every))
        return Scale(low=low, high=high, begin=begin, end=end, log=True, ticks=ticks)


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if factor * power >= least * 0.999:
            return factor * power
    return 10.0 * power
