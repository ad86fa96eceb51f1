"""Rows that are alike: equal ones and near ones."""

from __future__ import annotations

from engram_cli.report.numbers import count, number, percent
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import entries
from engram_cli.report.tables import table


def alike(document: Document) -> Section | None:
    """A line a layer, and the largest groups."""
    found = entries(document, "layers")
    if not found:
        return None
    rows, some = [], []
    for entry in found:
        layer, own = count(entry["layer"]), entry["likeness"]
        error = number(own["distinct_error"])
        share = own["near_share"]
        rows.append(
            (
                layer,
                count(own["rows"]),
                count(own["distinct"]) + (f" ± {count(error)}" if error else ""),
                percent(number(own["twin_share"])),
                count(own["compared"]),
                "-" if share is None else percent(number(share)),
            )
        )
        some += [
            (layer, f"{count(each['rows'])} equal", count(each["first"]), count(each["second"]))
            for each in own["twins"]
        ]
        some += [
            (layer, f"cosine {number(each['cosine']):.4f}", count(each["first"]),
             count(each["second"]))
            for each in own["near_twins"]
        ]  # fmt: skip
    names = (">layer", ">rows with values", ">different contents", ">have a twin", ">compared",
             ">have a near twin")  # fmt: skip
    body = [table(names, rows, caption="Rows alike")]
    if some:
        body.append(
            table((">layer", "how alike", ">row", ">and row"), some, caption="Some of them")
        )
    return Section(
        title="Rows alike",
        lead="Twins have the same bytes, near twins a cosine of 0.99 or more; both are estimated "
        "from samples that the rows choose by what they hold. Trained rows should differ: many "
        "twins are rows that training never told apart.",
        body=tuple(body),
    )
