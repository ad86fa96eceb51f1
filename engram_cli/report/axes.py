"""The frame that all charts share: scales, ticks, grid, titles, and strips with hover values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engram_cli.report.markup import Html, tag
from engram_cli.view import Axis

COLORS = 8  # of the palette; orders beyond repeat them
TOP, BOTTOM, LEFT, RIGHT = 26, 46, 58, 16
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
        """Return the pixel of `value`, kept inside the axis."""
        low, high = self._at(self.low), self._at(self.high)
        share = (self._at(max(value, self.low)) - low) / (high - low)
        return self.begin + min(max(share, 0.0), 1.0) * (self.end - self.begin)

    def _at(self, value: float) -> float:
        return math.log10(value) if self.log else value


def fit(axis: Axis, values: Sequence[float], begin: float, end: float) -> Scale:
    """Return the scale of an axis for `values` between the pixels `begin` and `end`."""
    if axis.labels is not None:
        ticks = tuple((float(i), label) for i, label in enumerate(axis.labels))
        return Scale(low=-0.5, high=len(ticks) - 0.5, begin=begin, end=end, log=False, ticks=ticks)
    if axis.log:
        return _fit_log(axis, [value for value in values if value > 0], begin, end)
    low = axis.low if axis.low is not None else min(values, default=0.0)
    high = axis.high if axis.high is not None else max(values, default=1.0)
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = nice_step((high - low) / max(2.0, abs(end - begin) / 46))
    if axis.low is None:
        low = math.floor(low / step + 1e-9) * step
    if axis.high is None:
        high = math.ceil(high / step - 1e-9) * step
    if axis.most is not None:
        high = min(high, axis.most)
    first = math.ceil(low / step - 1e-9)
    marks = [i * step for i in range(first, first + 40) if i * step <= high + step * 1e-9]
    ticks = tuple((mark, axis.tick(mark)) for mark in marks)
    return Scale(low=low, high=high, begin=begin, end=end, log=False, ticks=ticks)


def _fit_log(axis: Axis, values: Sequence[float], begin: float, end: float) -> Scale:
    least, most = min(values, default=1.0), max(values, default=10.0)
    low = axis.low if axis.low is not None else least / _MARGIN
    high = axis.high if axis.high is not None else most * _MARGIN
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last <= first:  # fewer than two powers of ten in between
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        low, high = 10.0**first, 10.0**last
    every = max(1, math.ceil((last - first) / max(2, abs(end - begin) / 40)))
    ticks = tuple((10.0**at, axis.tick(10.0**at)) for at in range(first, last + 1, every))
    return Scale(low=low, high=high, begin=begin, end=end, log=True, ticks=ticks)


def nice_step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if factor * power >= least * 0.999:
            return factor * power
    return 10.0 * power


def tip(title: str, lines: Sequence[tuple[str, str, int | None]]) -> str:
    """Return what hovering shows: a title and (name, value, color or None), separated by tabs."""
    rows = [(title,), *((n, v, "" if color is None else f"{color}") for n, v, color in lines)]
    return "\n".join(
        "\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row) for row in rows
    )


def path(points: Sequence[tuple[float, float]], class_: str, *, closed: bool = False) -> Html:
    """Draw a line through pixels, or the area within."""
    steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return tag("path", d=f"{steps} Z" if closed else steps, class_=class_)


def hue(color: int) -> str:
    """Return the class of a color of the palette."""
    return f"c{color % COLORS}"


