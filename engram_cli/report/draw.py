"""Draws the parts of a view as HTML: tables, matrices, tiles, shaded texts and figures."""

from __future__ import annotations

from engram_cli.charts import Chart
from engram_cli.report.charts import legend, numbers_of
from engram_cli.report.markup import Html, hue, join, ngram, tag, unbroken, visible
from engram_cli.view import Cell, Column, Matrix, Part, Row, Shades, Summary, Table, Tiles

_SHADES = 10  # the page's classes k0 to k10
_DENSE = 10  # columns of a table with less room between them
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
    facts = [
        tag("div", tag("dt", name), tag("dd", unbroken(value))) for name, value in summary.facts
    ]
    commands = [
        tag("li", tag("code", command, class_="command"), " ", tag("span", gives))
        for command, gives in summary.commands
    ]
    return tag(
        "div",
        tag("p", unbroken(summary.headline), class_="headline") if summary.headline else None,
        tag("dl", *facts, class_="facts") if facts else None,
        tag("p", "Next:", class_="next") if commands else None,
        tag("ul", *commands, class_="commands") if commands else None,
        class_="summary",
    )


def _row(row: Row) -> Html | None:
    """Draw charts, or tables, side by side."""
    if len(row.parts) == 1:
        return draw(row.parts[0])
    drawn = [draw(p) if isinstance(p, Table) else _figure(p) for p in row.parts]
    return tag("div", *drawn, class_="lists" if isinstance(row.parts[0], Table) else "row")


def _folding(table: Table) -> Html:
    if not table.folded:
        return _table(table)
    return tag("details", tag("summary", f"Numbers: {table.title}"), _table(table))


def _table(table: Table) -> Html:
    head = [
        tag("th", column.name, scope="col", class_="num" if column.numeric else None)
        if column.name
        else tag("td")  # a heading without words is none
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
        tag("caption", table.title),
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
        class_="dense" if len(table.columns) >= _DENSE else None,
    )
    drawn = _scroll(grid, table.title)
    if not table.note:
        return drawn
    return tag("div", drawn, tag("p", table.note, class_="note"), class_="noted")


def _scroll(grid: Html, label: str) -> Html:
    return tag("div", grid, class_="scroll", tabindex="0", role="region",
               aria_label=f"Table: {label}")  # fmt: skip


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
    head = [tag("td"), *(tag("th", _name(n), scope="col") for n in matrix.names)]
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
    """Draw a text; the page's script reads out the piece that is pointed at."""
    pieces = [
        tag("span", visible(piece or _HOLLOW), class_=f"tok {_signed_shade(shade)}", data_tip=note)
        for piece, shade, note in zip(text.pieces, text.shades, text.notes, strict=True)
    ]
    keys = [
        tag("li", tag("span", class_=f"key {_signed_shade(shade)}", aria_hidden="true"), meaning)
        for shade, meaning in text.legend
    ]
    name = text.title or "Shaded text"
    return tag(
        "figure",
        tag("figcaption", tag("b", _name(text.title)), tag("span", text.note))
        if text.title
        else None,
        tag("ul", *keys, class_="legend") if keys else None,
        tag("p", "Point at a token, tap it, or use the arrow keys, to read its value.",
            class_="readout", role="status", hidden=True),
        tag("p", tag("code", *pieces, class_="ngram"), class_="shaded", tabindex="0", role="group",
            aria_label=f"{name}: arrow keys read the value of each token"),
        class_="shading",
    )  # fmt: skip


def _signed_shade(value: float) -> str:
    """Return the class of a value -1..1."""
    return f"k{_shade(value)}" if value >= 0 else f"n{_shade(-value)}"


def _figure(chart: Chart) -> Html:
    """Draw a chart's frame: the page's script fills `.plot`, and everything else needs none."""
    offered = [
        tag("button", kind.upper(), type="button", data_save=kind, hidden=True,
            aria_label=f"Save {chart.title} as {kind.upper()}")
        for kind in ("csv", "svg")
    ]  # fmt: skip
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", chart.title),
            tag("span", chart.note) if chart.note else None,
            tag("span", *offered, class_="offers"),
        ),
        legend(chart),
        tag("div", class_="plot"),
        _folding(numbers_of(chart)),
        id=chart.name,
    )
