"""Charts as figures: the data that the page's script draws, a legend, and the numbers as a table.

`assets/charts.js` draws them with Observable Plot. What needs no script stays in the page: the
legend, and every number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engram_cli.charts import Axis, Bar, BarChart, Chart, Curve, LineChart
from engram_cli.report.markup import Html, hue, tag
from engram_cli.view import Cell, Column, Table

_PLAIN = 7  # the colour of keys that hold for several colours
_BARS_HEIGHT = 290  # pixels


def chart_data(chart: Chart) -> dict[str, Any]:
    """Return a chart as JSON for `charts.js`, which names every key."""
    common = {"name": chart.name, "title": chart.title, "description": chart.description}
    if isinstance(chart, BarChart):
        groups = [
            {
                "label": group.label,
                "slots": [
                    {"label": slot.label, "title": slot.title, "bars": list(map(_bar, slot.bars))}
                    for slot in group.slots
                ],
            }
            for group in chart.groups
        ]
        x = _axis(Axis(chart.x_title))
        return {"kind": "bars", **common, "height": _BARS_HEIGHT, "x": x, "y": _axis(chart.y),
                "groups": groups}  # fmt: skip
    marks = [
        {"x": mark.x, "y": mark.y, "label": mark.label, "place": mark.place} for mark in chart.marks
    ]
    return {
        "kind": "lines", **common, "height": chart.height, "x": _axis(chart.x),
        "y": _axis(chart.y), "curves": list(map(_curve, chart.curves)), "marks": marks,
        "places": chart.places,
    }  # fmt: skip


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "title": axis.title, "unit": axis.unit, "log": axis.log, "low": axis.low,
        "high": axis.high, "most": axis.most, "labels": axis.labels,
    }  # fmt: skip


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "name": curve.name, "color": curve.color, "points": curve.points, "band": curve.band,
        "dashed": bool(curve.variant), "dots": curve.dots, "step": curve.step, "line": curve.line,
        "wide": curve.wide,
    }  # fmt: skip


def _bar(bar: Bar) -> dict[str, Any]:
    return {
        "label": bar.label, "color": bar.color, "value": bar.value, "error": bar.error,
        "ideal": bar.ideal, "light": bar.light, "flag": bar.flag,
    }  # fmt: skip


def legend(chart: Chart) -> Html | None:
    """Return what colours and shapes mean; None for a chart of one unnamed thing."""
    keys = [tag("li", _swatch(shape, color), label) for label, shape, color in _keys(chart)]
    return tag("ul", *keys, class_="legend") if keys else None


def _keys(chart: Chart) -> Iterator[tuple[str, str, int]]:
    """Yield what colours and shapes mean: (label, shape, colour)."""
    if isinstance(chart, LineChart):
        whole = [c for c in chart.curves if not c.variant]
        yield from dict.fromkeys((c.label, _shape(c), c.color) for c in whole)
        yield from dict.fromkeys((c.variant, "dashed", _PLAIN) for c in chart.curves if c.variant)
        banded = [curve.line for curve in chart.curves if curve.band]
        if banded:
            yield "two standard errors", "band" if any(banded) else "error", _PLAIN
        return
    several = len({group.label for group in chart.groups}) > 1
    colors: dict[tuple[bool, str], set[int]] = {}
    for group in chart.groups:
        for bar in (bar for slot in group.slots for bar in slot.bars):
            label = group.label if several and not bar.light else bar.label
            colors.setdefault((bar.light, label), set()).add(bar.color)
    for (light, label), own in sorted(colors.items(), key=lambda item: item[0][0]):
        yield label, "light" if light else "bar", own.pop() if len(own) == 1 else _PLAIN
    bars = (bar for group in chart.groups for slot in group.slots for bar in slot.bars)
    if any(bar.ideal is not None for bar in bars):
        yield "random hash", "ideal", 0


def _shape(curve: Curve) -> str:
    if not curve.line:
        return "dot"
    return "wide" if curve.wide else "line"


def _swatch(shape: str, color: int) -> Html:
    drawn = {
        "line": tag("path", d="M0 6 H18", class_="line"),
        "wide": tag("path", d="M0 6 H18", class_="line wide"),
        "dashed": tag("path", d="M0 6 H18", class_="line dashed"),
        "dot": tag("circle", cx=9, cy=6, r=4, class_="bar"),
        "error": tag("path", d="M9 0 V12", class_="line"),
        "bar": tag("rect", x=2, y=1, width=14, height=10, rx=1, class_="bar"),
        "light": tag("rect", x=2, y=1, width=14, height=10, rx=1, class_="bar light"),
        "ideal": tag("path", d="M1 6 H17", class_="ideal"),
        "band": tag("rect", x=0, y=1, width=18, height=10, class_="band"),
    }[shape]
    return tag("svg", drawn, class_=f"swatch {hue(color)}", viewBox="0 0 18 12", aria_hidden="true")


def numbers_of(chart: Chart) -> Table:
    """Return the numbers of a chart as a table, for readers who do not see it."""
    return _of_lines(chart) if isinstance(chart, LineChart) else _of_bars(chart)


def _of_bars(chart: BarChart) -> Table:
    every = [bar for group in chart.groups for slot in group.slots for bar in slot.bars]
    labels = list(dict.fromkeys(bar.label for bar in every))
    ideal = [bar.label for bar in every if bar.ideal is not None]
    names = ["", *labels, *(f"{label}, ideal" for label in labels if label in ideal)]
    rows: list[tuple[Cell, ...]] = []
    for group in chart.groups:
        for slot in group.slots:
            own = {bar.label: bar for bar in slot.bars}
            values = {label: _bar_text(chart, bar) for label, bar in own.items()}
            values |= {
                f"{label}, ideal": chart.y.text(bar.ideal)
                for label, bar in own.items()
                if bar.ideal is not None
            }
            rows.append((slot.title or slot.label, *(values.get(name, "") for name in names[1:])))
    columns = [Column(name=name, kind="text" if not name else "count") for name in names]
    return Table(title=chart.title, columns=tuple(columns), rows=tuple(rows), folded=True)


def _bar_text(chart: BarChart, bar: Bar) -> str:
    error = f" ±{chart.y.text(bar.error)}" if bar.error else ""
    return f"{chart.y.text(bar.value)}{error}{f' ({bar.flag})' if bar.flag else ''}"


def _of_lines(chart: LineChart) -> Table:
    banded = any(curve.band for curve in chart.curves)
    rows: list[tuple[Cell, ...]] = []
    for curve in chart.curves:
        bands = {x: (low, high) for x, low, high in curve.band}
        for x, y in curve.points:
            place = chart.places[round(x)] if chart.places else chart.x.text(x)
            cells: list[Cell] = [curve.name, place, chart.y.text(y)]
            if banded:
                low_high = bands.get(x)
                cells.append("" if low_high is None else " to ".join(map(chart.y.text, low_high)))
            rows.append(tuple(cells))
    names = ("", chart.x.title, chart.y.title, *(("two standard errors",) if banded else ()))
    columns = [Column(name=name, kind="text" if at == 0 else "count")
               for at, name in enumerate(names)]  # fmt: skip
    return Table(title=chart.title, columns=tuple(columns), rows=tuple(rows), folded=True)
