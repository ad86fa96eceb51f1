"""Draws the parts of a view as HTML: tables, matrices, tiles, shaded texts and figures."""

from __future__ import annotations

from collections.abc import Iterator

from engram_cli.report.axes import hue
from engram_cli.report.charts import draw_chart, place_name
from engram_cli.report.markup import Html, join, ngram, tag, visible
from engram_cli.view import (
    Bar,
    BarChart,
    Cell,
    Chart,
    Column,
    LineChart,
    Matrix,
    Part,
    Row,
    Shades,
    Summary,
    Table,
    Tiles,
)

_WIDE, _NARROW, _HALF = 760, 360, 400  # pixels
_PLAIN = 7  # the colour of keys that hold for several colours
_SHADES = 10  # the page's classes k0 to k10
_NAME = 120  # characters shown of a name
_OF_CELL = 12  # n-grams shown in a cell
_HOLLOW = "·"  # an empty piece of a text


def draw(part: Part) -> Html | None:
    """Return a part of a view as HTML; None for a table that only the terminal prints."""
    if isinstance(part, Table):
        return _folding(part) if part.where != "terminal" else None
    if isinstance(part, Summary):
        return _summary(part)
    if isinstance(part, Row):
        return _row(part)
    if isinstance(part, Tiles):
        entries = [
            tag("div", tag("dt", what), tag("dd", value), tag("dd", compared, class_="compared"))
            for value, what, compared in part.entries
        ]  # fmt: skip
        return tag("dl", *entries, class_="tiles")
    if isinstance(part, Matrix):
        return _matrix(part)
    return _shades(part) if isinstance(part, Shades) else _figure(part)


def _summary(summary: Summary) -> Html:
    facts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in summary.facts]
    commands = [
        tag("li", tag("code", command, class_="command"), " ", tag("span", gives))
        for command, gives in summary.commands
    ]
    return tag(
        "div",
        tag("p", summary.headline, class_="headline"),
        tag("dl", *facts, class_="facts"),
        tag("p", "Next:", class_="next") if commands else None,
        tag("ul", *commands, class_="commands") if commands else None,
        class_="summary",
    )


def _row(row: Row) -> Html | None:
    """Draw charts, or tables, side by side."""
    if len(row.parts) == 1:
        return draw(row.parts[0])
    drawn = [draw(p) if isinstance(p, Table) else _figure(p, half=True) for p in row.parts]
    return tag("div", *drawn, class_="lists" if isinstance(row.parts[0], Table) else "row")


def _folding(table: Table) -> Html:
    if not table.folded:
        return _table(table)
    return tag("details", tag("summary", f"Numbers: {table.title}"), _table(table))


def _table(table: Table) -> Html:
    head = [
        tag("th", column.name, scope="col", class_="num" if column.numeric else None)
        for column in table.columns
    ]
    most = [
        max((float(cell) for cell in cells if isinstance(cell, int | float)), default=1.0)
        for cells in (zip(*table.rows, strict=True) if table.rows else [()] * len(table.columns))
    ]
    body = [
        tag("tr", *[
            tag("td", _cell(column, cell, largest), class_="num" if column.numeric else None)
            for column, cell, largest in zip(table.columns, row, most, strict=True)
        ])
        for row in table.rows
    ]  # fmt: skip
    grid = tag(
        "table",
        tag("caption", table.title, f" ({table.note})" if table.note else None),
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
    )
    return _scroll(grid, table.title)


def _scroll(grid: Html, label: str) -> Html:
    return tag("div", grid, class_="scroll", tabindex="0", role="region", aria_label=label)


def _cell(column: Column, cell: Cell, most: float) -> object:
    if column.kind == "ngram":
        return ngram(str(cell))
    if column.kind == "digest":
        return tag("code", str(cell), class_="digest")
    if isinstance(cell, tuple):
        met = [
            tag("span", ngram(each.text), tag("small", column.text(each.count)), class_="met")
            for each in cell[:_OF_CELL]
        ]
        more = len(cell) - len(met)
        return join([piece for each in met for piece in (each, " ")]
                    + ([tag("small", f"and {more:,} more")] if more > 0 else []))  # fmt: skip
    if column.bar and isinstance(cell, int | float):
        bar = tag("rect", x=0, y=0, width=max(100 * cell / (most or 1.0), 0.8), height=8,
                  class_="bar")  # fmt: skip
        return tag("svg", bar, viewBox="0 0 100 8", preserveAspectRatio="none",
                   class_=f"spark {hue(0)}", aria_hidden="true")  # fmt: skip
    text = column.text(cell)
    return _name(text) if column.kind == "text" else text


def _name(name: str) -> Html:
    return tag("bdi", name[:_NAME] if name.isprintable() else visible(name[:_NAME]))


def _matrix(matrix: Matrix) -> Html:
    head = [tag("th", "", scope="col"), *(tag("th", _name(n), scope="col") for n in matrix.names)]
    errors = matrix.errors or ((0.0,) * len(matrix.names),) * len(matrix.names)
    share = Column(name="", kind="percent", digits=1)
    lines = []
    for i, (name, values, spread) in enumerate(
        zip(matrix.names, matrix.values, errors, strict=True)
    ):
        cells = []
        for j, (value, error) in enumerate(zip(values, spread, strict=True)):
            own = "cell self" if i == j else f"cell k{_shade(value)}"
            small = tag("small", f" ±{100 * error:.1f}") if error > 0 else None
            cells.append(tag("td", share.text(value), small, class_=own))
        lines.append(tag("tr", tag("th", _name(name), scope="row"), *cells))
    grid = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *lines), class_="matrix")
    caption = tag("figcaption", tag("b", matrix.title))
    return tag("figure", caption, _scroll(grid, matrix.title), id=matrix.name)


def _shade(value: float) -> int:
    return min(max(round(value * _SHADES), 0), _SHADES)


def _shades(text: Shades) -> Html:
    pieces = [
        tag("span", visible(piece or _HOLLOW), class_=f"tok {_signed_shade(shade)}", title=note)
        for piece, shade, note in zip(text.pieces, text.shades, text.notes, strict=True)
    ]
    drawn = tag("p", tag("code", *pieces, class_="ngram"), class_="shaded")
    if not text.title:
        return drawn
    keys = [
        tag("li", tag("span", class_=f"key {_signed_shade(shade)}", aria_hidden="true"), meaning)
        for shade, meaning in text.legend
    ]
    caption = tag("figcaption", tag("b", _name(text.title)), tag("span", text.note))
    return tag("figure", caption, tag("ul", *keys, class_="legend") if keys else None, drawn)


def _signed_shade(value: float) -> str:
    """Return the class of a value -1..1."""
    return f"k{_shade(value)}" if value >= 0 else f"n{_shade(-value)}"


def _figure(chart: Chart, *, half: bool = False) -> Html:
    """Draw a chart at two widths, or at half the width, with its legend and its numbers."""
    if half:
        drawn = [tag("div", draw_chart(chart, _HALF), class_="any")]
    else:
        drawn = [
            tag("div", draw_chart(chart, _WIDE), class_="wide"),
            tag("div", draw_chart(chart, _NARROW), class_="narrow"),
        ]
    note = tag("span", chart.note) if chart.note else None
    keys = [tag("li", _swatch(shape, color), label) for label, shape, color in _keys(chart)]
    return tag(
        "figure",
        tag("figcaption", tag("b", chart.title), note),
        tag("ul", *keys, class_="legend") if keys else None,
        *drawn,
        _folding(numbers_of(chart)),
        id=chart.name,
    )


def _keys(chart: Chart) -> Iterator[tuple[str, str, int]]:
    """Yield what colours and shapes mean: (label, shape, colour)."""
    if isinstance(chart, LineChart):
        yield from dict.fromkeys((c.label, "line", c.color) for c in chart.curves if not c.variant)
        yield from dict.fromkeys((c.variant, "dashed", _PLAIN) for c in chart.curves if c.variant)
        if any(curve.band for curve in chart.curves):
            yield "two standard errors", "band", _PLAIN
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
        yield "ideal hash", "ideal", 0


def _swatch(shape: str, color: int) -> Html:
    drawn = {
        "line": tag("path", d="M0 6 H18", class_="line"),
        "dashed": tag("path", d="M0 6 H18", class_="line dashed"),
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
            place = place_name(chart, x) if chart.places else chart.x.text(x)
            cells: list[Cell] = [curve.name, place, chart.y.text(y)]
            if banded:
                low_high = bands.get(x)
                cells.append("" if low_high is None else " to ".join(map(chart.y.text, low_high)))
            rows.append(tuple(cells))
    names = ("", chart.x.title, chart.y.title, *(("two standard errors",) if banded else ()))
    columns = [Column(name=name, kind="text" if at == 0 else "count")
               for at, name in enumerate(names)]  # fmt: skip
    return Table(title=chart.title, columns=tuple(columns), rows=tuple(rows), folded=True)
