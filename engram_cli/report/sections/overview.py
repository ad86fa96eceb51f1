"""The figures to know first."""

from __future__ import annotations

from engram_cli.report.numbers import brief, count, mean, number, percent
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import by, entries, order_name
from engram_cli.report.tables import table, tiles


def overview(document: Document) -> Section | None:
    """Tiles and one line an order."""
    orders, columns = entries(document, "orders"), entries(document, "columns")
    if not orders:
        return None
    tokens = number(document.get("tokens", 0))
    shown = [
        (brief(tokens), "tokens", f"{count(document.get('documents', 0))} documents"),
    ]
    if columns:
        rows = sum(number(entry["rows"]) for entry in columns)
        occupied = sum(number(entry["occupied"]) for entry in columns)
        layers = len(by(columns, "layer"))
        shown += [
            (brief(rows), "rows", f"{layers} layer{'s' if layers > 1 else ''}, "
             f"{len(columns)} columns"),
            (percent(occupied / rows), "of the rows are used", "at least once by this corpus"),
            (percent(mean(number(entry["shared_occurrences"]) for entry in columns)),
             "of look-ups meet a shared row", "mean of all heads"),
        ]  # fmt: skip
    lines = []
    grouped = by(columns, "order")
    for entry in orders:
        own = grouped.get(entry["order"], [])
        distinct = number(entry["distinct"])
        line = [
            order_name(entry["order"]),
            count(distinct),
            "exact" if entry.get("exact") else f"± {count(entry['distinct_error'])}",
            f"{number(entry['windows']) / max(distinct, 1.0):.1f}",
        ]
        for key in ("occupied", "shared", "ideal_shared", "shared_occurrences"):
            values = [
                number(column[key]) / (number(column["rows"]) if key == "occupied" else 1.0)
                for column in own
            ]
            line.append(percent(mean(values)) if values else "-")
        lines.append(line)
    return Section(
        title="At a glance",
        lead="A row is shared when more than one n-gram falls on it. The ideal is what a random "
        "hash would give for as many distinct n-grams and as many rows: a good layout "
        "matches it, only more rows beat it.",
        body=(
            tiles(*shown),
            table(
                ("", ">distinct n-grams", ">standard error", ">times each", ">rows used",
                 ">n-grams sharing", ">ideal", ">look-ups sharing"),
                lines,
                caption="By order, mean of all heads and layers",
            ),
        ),
    )  # fmt: skip
