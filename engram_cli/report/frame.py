"""The frame every chart shares: axes, grid, titles, and the strips that carry hover values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engram_cli.report.markup import Html, tag
from engram_cli.report.scales import Axis, Scale

COLORS = 8  # of the palette; orders beyond begin again
TOP, BOTTOM, LEFT, RIGHT = 26, 46, 58, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Tip:
    """The values shown over a place: a heading and (name, value, color or None) lines."""

    title: str
    lines: tuple[tuple[str, str, int | None], ...]

    def text(self) -> str:
        """One line each, parted by tabs, which no line holds."""
        rows = [(name, value, "" if color is None else f"{color}")
                for name, value, color in self.lines]  # fmt: skip
        return "\n".join("\t".join(_plain(cell) for cell in row) for row in [(self.title,), *rows])


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
        """The frame whose axes hold `xs` and `ys`."""
        return cls(
            width=width,
            height=height,
            x=x.fit(xs, LEFT, width - RIGHT),
            y=y.fit(ys, height - BOTTOM, TOP),
        )

    def axes(self, x: Axis, y: Axis, *, x_grid: bool = False) -> Html:
        """Grid, ticks, labels and titles."""
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
        """Each how-many-th tick of the x axis has room for its label."""
        ticks = self.x.ticks
        if len(ticks) < 2:
            return 1
        apart = (self.x(ticks[-1][0]) - self.x(ticks[0][0])) / (len(ticks) - 1)
        return max(1, math.ceil((6.6 * max(len(label) for _, label in ticks) + 6) / apart))

    def strip(self, begin: float, end: float, at: float | None, tip: Tip) -> Html:
        """An invisible strip from `begin` to `end` that shows `tip`, with a hair line at `at`."""
        hair = None
        if at is not None:
            hair = tag("line", class_="hair", x1=at, x2=at, y1=TOP, y2=self.height - BOTTOM)
        area = tag("rect", x=begin, y=TOP, width=max(end - begin, 0.5),
                   height=self.height - BOTTOM - TOP)  # fmt: skip
        return tag("g", area, hair, class_="strip", data_tip=tip.text())

    def svg(self, name: str, title: str, description: str, *parts: Html) -> Html:
        """The drawing, with its title and description for who does not see it."""
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


def path(points: Sequence[tuple[float, float]], class_: str, *, closed: bool = False) -> Html:
    """A line through pixels, or the area within."""
    steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return tag("path", d=f"{steps} Z" if closed else steps, class_=class_)


def legend(*entries: tuple[str, str, int]) -> Html | None:
    """What colors and shapes mean: (label, shape, color), shape one of _SHAPES."""
    if not entries:
        return None
    items = [tag("li", _swatch(shape, color), label) for label, shape, color in entries]
    return tag("ul", *items, class_="legend")


def hue(color: int) -> str:
    """The class of a color of the palette."""
    return f"c{color % COLORS}"


def _swatch(shape: str, color: int) -> Html:
    drawn = {
        "line": tag("path", d="M0 6 H18", class_="line"),
        "dashed": tag("path", d="M0 6 H18", class_="line dashed"),
        "bar": tag("rect", x=2, y=1, width=14, height=10, rx=1, class_="bar"),
        "light": tag("rect", x=2, y=1, width=14, height=10, rx=1, class_="bar light"),
        "ideal": tag("path", d="M1 6 H17", class_="ideal"),
        "dot": tag("circle", cx=9, cy=6, r=3.5, class_="dot"),
        "band": tag("rect", x=0, y=1, width=18, height=10, class_="band"),
        "one": tag("path", d="M0 6 H18", class_="one"),
    }[shape]
    return tag("svg", drawn, class_=f"swatch {hue(color)}", viewBox="0 0 18 12", aria_hidden="true")


def _plain(text: str) -> str:
    return text.replace("\t", " ").replace("\n", " ")
