"""The hottest rows, and the n-grams known to fall on them."""

from __future__ import annotations

from engram_cli.report.markup import Html, join, ngram, tag
from engram_cli.report.numbers import count, times
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import Entry, entries
from engram_cli.report.tables import table


def hottest(document: Document) -> Section | None:
    """A line a row."""
    found = entries(document, "hottest")
    if not found:
        return None
    rows = [
        (
            *(count(entry[name]) for name in ("layer", "order", "head", "row", "hits")),
            _ngrams(entry),
        )
        for entry in found
    ]
    return Section(
        title="Hottest rows",
        lead="The rows with the most hits, and which n-grams known to the statistics fall on "
        "them. A frequent n-gram heats a row in each head; what else is there must live with it.",
        body=(
            table(
                (">layer", ">order", ">head", ">row", ">hits", "n-grams (times)"),
                rows,
                caption="Hottest rows",
            ),
        ),
    )


def _ngrams(entry: Entry) -> Html:
    known = entry["ngrams"]
    if not known:
        return join(["none known"])
    lines = [tag("div", ngram(each["text"]), f" {times(each)}") for each in known]
    rest = int(entry["known"]) - len(known)
    return join([*lines, tag("div", f"and {rest:,} more") if rest > 0 else None])
