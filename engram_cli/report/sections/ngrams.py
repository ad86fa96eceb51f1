"""The n-grams behind the figures: the most frequent, and those that meet on the worst rows."""

from __future__ import annotations

from engram_cli.report.markup import Html, join, ngram, tag
from engram_cli.report.numbers import count, number, percent, times
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import Entry, color_of, entries, order_name
from engram_cli.report.tables import table

_MOST_TOP, _MOST_WORST, _MOST_OF_ROW = 30, 40, 12


def ngrams(document: Document) -> Section | None:
    """The most frequent n-grams of each order."""
    found = entries(document, "top_ngrams")
    if not found:
        return None
    tokens = number(document.get("tokens") or 0)
    blocks = [tag("div", *[_top(entry, tokens) for entry in found], class_="lists")]
    return Section(
        title="The most frequent n-grams",
        lead=f"{_scope(found)} A box is a token, after compression; ␣ is a space. What is "
        "frequent here is learned well whatever the table; it also drowns what shares its row.",
        body=tuple(blocks),
    )


def worst_rows(document: Document) -> Section | None:
    """The rows where most meets, and what meets there."""
    found = entries(document, "worst_rows")
    if not found:
        return None
    rows = [
        (count(entry["layer"]), count(entry["order"]), count(entry["head"]), count(entry["row"]),
         count(entry["hits"]), _meeting(entry))
        for entry in found[:_MOST_WORST]
    ]  # fmt: skip
    names = (">layer", ">order", ">head", ">row", ">hits", "n-grams on it")
    return Section(
        title="The worst rows",
        lead="Rows where frequent n-grams meet. Look whether the pairs matter: other heads of the "
        "same n-grams fall elsewhere.",
        body=(table(names, rows, caption="Rows where most n-grams meet"),),
    )


def _scope(found: list[Entry]) -> str:
    """Which n-grams the list was chosen among, and what its counts are."""
    if all(entry.get("exact", True) for entry in found):
        return "All n-grams were counted."
    if not any(entry.get("positions") for entry in found):  # of an earlier version
        return (
            "From the sample, which holds an n-gram by chance, not because it is frequent: others "
            "may be more frequent. Count the corpus again to know."
        )
    excess = max(number(entry["excess"]) for entry in found)
    return (
        "A count with ≤ is the least number of hits among the n-gram's rows. It is too high by "
        f"{count(excess)} at most, for 19 of 20 n-grams; --exact counts all."
    )


def _top(entry: Entry, tokens: float) -> Html:
    listed = entry["ngrams"][:_MOST_TOP]
    most = max((number(each["count"]) for each in listed), default=1.0) or 1.0
    color = color_of(entry["order"])
    rows = []
    for each in listed:
        own = number(each["count"])
        bar = tag(
            "svg",
            tag("rect", x=0, y=0, width=max(100 * own / most, 0.8), height=8, class_="bar"),
            viewBox="0 0 100 8",
            preserveAspectRatio="none",
            class_=f"spark c{color % 8}",
            aria_hidden="true",
        )
        share = percent(own / tokens, 2) if tokens else ""
        rows.append((ngram(str(each["text"])), bar, times(each), share))
    return table(("n-gram", "", ">count", ">share"), rows, caption=f"{order_name(entry['order'])}")


def _meeting(entry: Entry) -> Html:
    listed = entry["ngrams"]
    parts: list[object] = []
    for each in listed[:_MOST_OF_ROW]:
        parts.append(tag("span", ngram(str(each["text"])), tag("small", times(each)), class_="met"))
        parts.append(" ")
    if len(listed) > _MOST_OF_ROW:
        parts.append(tag("small", f"and {len(listed) - _MOST_OF_ROW:,} more"))
    return join(parts)
