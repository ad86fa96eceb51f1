"""Line charts: curves with error bands on linear or log axes."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

from engram_cli.report.frame import Frame, Tip, hue, path
from engram_cli.report.markup import Html, tag
from engram_cli.report.numbers import brief
from engram_cli.report.scales import Axis, Format

_MOST_STRIPS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line through `points`, with an optional band of (x, low, high)."""

    label: str
    color: int
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()
    dashed: bool = False
    dots: bool = False
    step: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Curves over one pair of axes. `x_value`, `y_value` say how a hovered value is
    written, `places` what the places of a labelled axis are called."""

    name: str
    title: str
    description: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    height: int = 340
    x_value: Format = brief
    y_value: Format = brief
    places: tuple[str, ...] | None = None

    def draw(self, width: int) -> Html:
        """The chart, `width` pixels wide."""
        xs = [x for curve in self.curves for x, _ in curve.points]
        ys = [y for curve in self.curves for _, y in curve.points]
        ys += [y for curve in self.curves for _, low, high in curve.band for y in (low, high)]
        frame = Frame.fit(width, self.height, self.x, self.y, xs, ys)
        marks = [self._curve(frame, curve) for curve in self.curves]
        return frame.svg(
            f"{self.name}-{width}",
            self.title,
            self.description,
            frame.axes(self.x, self.y, x_grid=self.x.labels is None),
            *marks,
            tag("g", *self._strips(frame), class_="strips"),
        )

    def _shown(self, points: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
        return [
            (x, y)
            for x, y in points
            if (x > 0 or not self.x.log or self.x.labels) and (y > 0 or not self.y.log)
        ]

    def _curve(self, frame: Frame, curve: Curve) -> Html:
        points = [(frame.x(x), frame.y(y)) for x, y in self._shown(curve.points)]
        parts: list[Html | None] = []
        if curve.band:
            upper = [(frame.x(x), frame.y(high)) for x, _, high in curve.band]
            lower = [(frame.x(x), frame.y(low)) for x, low, _ in reversed(curve.band)]
            parts.append(path(upper + lower, "band", closed=True))
        if curve.step:
            points = _steps(points, frame.x(1.0) - frame.x(0.0))
        if len(points) > 1:
            parts.append(path(points, "line dashed" if curve.dashed else "line"))
        if curve.dots or len(points) == 1:
            parts += [tag("circle", cx=x, cy=y, r=3, class_="dot") for x, y in points]
        return tag("g", *parts, class_=f"curve {hue(curve.color)}")

    def _strips(self, frame: Frame) -> list[Html]:
        """A strip for each place that has a value, each as wide as half way to its neighbours."""
        places = sorted({x for curve in self.curves for x, _ in self._shown(curve.points)})
        places = places[:: max(1, -(-len(places) // _MOST_STRIPS))]
        pixels = [frame.x(x) for x in places]
        edges = [(a + b) / 2 for a, b in pairwise(pixels)]
        edges = [frame.x.begin, *edges, frame.x.end]
        found = []
        for i, (place, pixel) in enumerate(zip(places, pixels, strict=True)):
            lines = tuple(
                (curve.label, self.y_value(value), curve.color)
                for curve in self.curves
                if (value := _value(curve.points, place)) is not None
            )
            tip = Tip(title=self._place(place), lines=lines)
            found.append(frame.strip(edges[i], edges[i + 1], pixel, tip))
        return found

    def _place(self, x: float) -> str:
        if self.places is not None:
            return self.places[round(x)]
        return f"{self.x_value(x)} {self.x.title}"


def _steps(points: list[tuple[float, float]], wide: float) -> list[tuple[float, float]]:
    """Each point as a level as wide as its bin."""
    return [(x + side * wide / 2, y) for x, y in points for side in (-1, 1)]


def _value(points: tuple[tuple[float, float], ...], x: float) -> float | None:
    """The value of a curve at exactly `x`; its points ascend."""
    at = bisect_left(points, (x, float("-inf")))
    return points[at][1] if at < len(points) and points[at][0] == x else None
