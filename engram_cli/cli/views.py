"""Prints the tables of views; the page (`report/`) draws their charts too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from engram_cli.charts import LineChart
from engram_cli.cli.plain import one_line
from engram_cli.view import Cell, Column, Matrix, Part, Row, Summary, Table, View, Where

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_MOST_NAMES = 9  # of a matrix
_WITH_ERRORS = 4  # names with which a matrix has room for errors
_NAME = 28  # characters of a name
_LEVELS = " ▁▂▃▄▅▆▇█"
_BARS = 40
_SHARE_BAR = 32  # characters of a bar of 100 %


def printed(
    views: Iterable[View], *, asked: bool = False, verbose: bool = False
) -> list[RenderableType]:
    """Return what the terminal prints of views.

    `asked`: also views shown on request; `verbose`: also the long tables.
    """
    shown = ("always", "asked") if asked else ("always",)
    tables: set[Where] = {"both", "terminal"}
    if verbose:
        tables.add("verbose")
    return [
        drawn
        for view in views
        if view.shown in shown
        for part in view.parts
        for drawn in _drawn(part, tables)
    ]


def _drawn(part: Part, tables: set[Where]) -> Iterator[RenderableType]:
    if isinstance(part, Row):
        for each in part.parts:
            yield from _drawn(each, tables)
    elif isinstance(part, Summary):
        yield from _summary(part)
    elif isinstance(part, Table) and part.where in tables:
        yield _table(part)
    elif isinstance(part, Matrix):
        yield _matrix(part)
    elif isinstance(part, LineChart) and part.spark:
        yield from _sparks(part)


def _summary(summary: Summary) -> Iterator[RenderableType]:
    from rich.text import Text

    from engram_cli.cli.render import named

    if summary.headline:
        yield Text(_unbroken(summary.headline), "bold")
        yield ""
    if summary.facts:
        yield named((name, _unbroken(value)) for name, value in summary.facts)
        yield ""


def _unbroken(text: str) -> str:
    """Return text in which no line ends between a number and its unit."""
    return text.replace("\u202f", "\u00a0")


def _table(table: Table) -> RenderableType:
    from engram_cli.cli.render import grid

    bars = table.where == "terminal"
    places = [at for at, column in enumerate(table.columns) if bars or not column.bar]
    columns = [table.columns[at] for at in places]
    rows = [
        [_text(column, row[at]) for column, at in zip(columns, places, strict=True)]
        for row in _first(table)
    ]
    title = f"{table.title} ({table.note})" if table.note else table.title
    names = [
        f">{column.name}" if column.numeric and not column.bar else column.name
        for column in columns
    ]
    return grid(title, names, rows)


def _first(table: Table) -> Iterator[tuple[Cell, ...]]:
    """Yield the rows within the limit of each group."""
    met: dict[tuple[Cell, ...], int] = {}
    for row in table.rows:
        key = row[: table.group]
        met[key] = met.get(key, 0) + 1
        if table.limit is None or met[key] <= table.limit:
            yield row


def _text(column: Column, cell: Cell) -> str | Text:
    if column.bar and isinstance(cell, int | float):
        return _LEVELS[-1] * round(_SHARE_BAR * cell) or _LEVELS[1]
    text = column.text(cell)
    if text == column.alarm:
        from rich.text import Text

        return Text(text, "bold red")
    if column.kind == "digest" and len(text) > 27:
        return f"{text[:23]}..."
    text = text.replace("\u202f", "\u00a0" if column.numeric else " ")
    return one_line(text) if column.kind == "text" else text


def _matrix(matrix: Matrix) -> RenderableType:
    """Print a matrix of percentages, with numbers in place of the names of columns."""
    from engram_cli.cli.render import error, grid

    shown = range(min(len(matrix.names), _MOST_NAMES))
    wide = len(shown) <= _WITH_ERRORS
    errors = matrix.errors or ((0.0,) * len(matrix.names),) * len(matrix.names)
    rows = []
    for i in shown:
        name = one_line(matrix.names[i])
        cells = [
            f"{100 * matrix.values[i][j]:.1f}{error(errors[i][j], 1)}"
            if wide and i != j
            else f"{100 * matrix.values[i][j]:.0f}"
            for j in shown
        ]
        extra = [f"{matrix.extra[i]:,}"] if matrix.extra else []
        short = name if len(name) <= _NAME else "…" + name[1 - _NAME :]
        rows.append([f"{i + 1}", short, *extra, *cells])
    title, more = matrix.title, len(matrix.names) - len(shown)
    most = max(errors[i][j] for i in shown for j in shown)
    if most and not wide:
        title += f", standard error up to {100 * most:.1f}"
    title += f" ({more} more in stats.json)" if more else ""
    extra_name = [f">{matrix.extra_name}"] if matrix.extra else []
    return grid(title, [">", "source", *extra_name, *(f">{j + 1}" for j in shown)], rows)


def _sparks(chart: LineChart) -> Iterator[RenderableType]:
    """Print each curve as a line of bars, several points in one bar if there are many."""
    from rich.text import Text

    labels = chart.x.labels or tuple(chart.x.tick(x) for x, _ in chart.curves[0].points)
    for curve in chart.curves:
        values = [y for _, y in curve.points]
        wide = -(-len(values) // _BARS)
        sums = [sum(values[at : at + wide]) for at in range(0, len(values), wide)]
        most = max(sums, default=0.0) or 1.0
        bars = "".join(_LEVELS[0 if y == 0 else max(1, round(8 * y / most))] for y in sums)
        yield Text.assemble(
            (f"{chart.title}, {curve.name} ", "bold"),
            f"{labels[0]} ",
            (bars, "cyan"),
            f" {labels[len(values) - 1]}",
        )
