"""Rows with equal contents."""

from __future__ import annotations

from engram_cli.report.numbers import count, number, percent
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import entries
from engram_cli.report.tables import table


def duplicates(document: Document) -> Section | None:
    """A line a layer, and the largest groups."""
    found = entries(document, "layers")
    if not found:
        return None
    rows, groups = [], []
    for entry in found:
        layer, own = count(entry["layer"]), entry["duplicates"]
        error = number(own["distinct_error"])
        rows.append(
            (
                layer,
                count(own["rows"]),
                count(own["distinct"]) + (f" ± {count(error)}" if error else ""),
                percent(number(own["twin_share"])),
            )
        )
        groups += [
            (layer, count(each["rows"]), count(each["first"]), count(each["second"]))
            for each in own["twins"]
        ]
    names = (">layer", ">rows with values", ">distinct contents", ">equal to another row")
    body = [table(names, rows, caption="Duplicate rows")]
    if groups:
        names = (">layer", ">equal rows", ">row", ">and row")
        body.append(table(names, groups, caption="The largest groups of them"))
    return Section(
        title="Duplicate rows",
        lead="Rows with the same bytes, estimated from a sample that rows choose by the hash of "
        "their bytes. Trained rows differ: duplicates are rows that training never moved apart.",
        body=tuple(body),
    )
