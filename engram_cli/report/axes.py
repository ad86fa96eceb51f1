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


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A drawing of `width` x `height` pixels; its scales reach the plot's edges."""

    width: int
    height: int
    x: Scale
    y: Scale

    @classmethod
    def fit(
        cls, width: int, height: int, x: Axis, y: Axis, xs: Sequence[float], ys: Sequence[float]
    ) -> Frame:
        """Return the frame whose axes hold `xs` and `ys`."""
        return cls(
            width=width,
            height=height,
            x=fit(x, xs, LEFT, width - RIGHT),
            y=fit(y, ys, height - BOTTOM, TOP),
        )

    def axes(self, x: Axis, y: Axis, *, x_grid: bool = False) -> Html:
        """Draw the grid, ticks, labels and titles."""
        bottom, parts = self.height - BOTTOM, []
        for value, label in self.y.ticks:
            at = self.y(value)
            parts.append(tag("line", class_="grid", x1=LEFT, x2=self.width - RIGHT, y1=at, y2=at))
            parts.append(tag("text", label, class_="tick end", x=LEFT - 8, y=at + 4))
        every = self._every()
        for i, (value, label) in enumerate(self.x.ticks):
            at = self.x(value)
            if x_grid:
                parts.append(tag("line", class_="grid", x1=at, x2=at, y1=TOP, y2=bottom))
            if i % every == 0:
                place = "end" if at > self.width - RIGHT - 8 and len(label) > 4 else "mid"
                parts.append(tag("text", label, class_=f"tick {place}", x=at, y=bottom + 17))
        parts.append(tag("line", class_="axis", x1=LEFT, x2=self.width - RIGHT,
                         y1=bottom, y2=bottom))  # fmt: skip
        parts.append(tag("text", y.title, class_="name", x=0, y=12))
        parts.append(tag("text", x.title, class_="name end", x=self.width - RIGHT,
                         y=self.height - 8))  # fmt: skip
        return tag("g", *parts, class_="axes")

    def _every(self) -> int:
        """Return n where every n-th tick of the x axis has room for its label."""
        ticks = self.x.ticks
        if len(ticks) < 2:
            return 1
        apart = (self.x(ticks[-1][0]) - self.x(ticks[0][0])) / (len(ticks) - 1)
        return max(1, math.ceil((6.6 * max(len(label) for _, label in ticks) + 6) / apart))

    def strip(self, begin: float, end: float, at: float | None, hover: str) -> Html:
        """Draw an invisible strip from `begin` to `end`: hovering shows `hover` and a line."""
        hair = None
        if at is not None:
            hair = tag("line", class_="hair", x1=at, x2=at, y1=TOP, y2=self.height - BOTTOM)
        area = tag("rect", x=begin, y=TOP, width=max(end - begin, 0.5),
                   height=self.height - BOTTOM - TOP)  # fmt: skip
        return tag("g", area, hair, class_="strip", data_tip=hover)

    def svg(self, name: str, title: str, description: str, *parts: Html) -> Html:
        """Return the drawing; `description` is for readers who do not see it."""
        return tag(
            "svg",
            tag("title", title, id=f"{name}-title"),
            tag("desc", description, id=f"{name}-desc"),
            *parts,
            viewBox=f"0 0 {self.width} {self.height}",
            role="img",
            tabindex="0",
            aria_labelledby=f"{name}-title",
            aria_describedby=f"{name}-desc",
            class_="chart",
        )


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
