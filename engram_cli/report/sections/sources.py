"""How the n-grams of the sources overlap: a matrix an order."""

from __future__ import annotations

from engram_cli.report.markup import Html, tag, visible
from engram_cli.report.numbers import count, number, numbers, percent
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import Entry, entries, order_name
from engram_cli.report.tables import table

_SHADES = 10


def sources(document: Document) -> Section | None:
    """The tokens of each source, and what it shares with each other."""
    found = document.get("sources") or {}
    names = [str(name) for name in found.get("names") or []]
    if not names:
        return None
    tokens = numbers(found["tokens"])
    whole = sum(tokens) or 1.0
    rows = [
        (_name(name), count(own), percent(own / whole, 1))
        for name, own in zip(names, tokens, strict=True)
    ]
    body = [table(("source", ">tokens", ">share"), rows, caption="Sources")]
    if len(names) > 1:
        body += [_matrix(names, entry) for entry in entries(found, "overlap")]
    return Section(
        title="Sources and what they share",
        lead="Read a line from the left: the share of that source's look-ups whose n-gram also "
        "occurs in the source above, with its standard error in points. Where little overlaps, a "
        "table of one source serves the other badly, and both together need nearly the sum of "
        "their rows.",
        body=tuple(body),
    )


def _matrix(names: list[str], entry: Entry) -> Html:
    head = [tag("th", "", scope="col")] + [tag("th", _name(name), scope="col") for name in names]
    lines = []
    unknown = [[0.0] * len(names)] * len(names)  # earlier versions say no errors
    errors = entry.get("share_error") or unknown
    for name, values, spread in zip(names, entry["share"], errors, strict=True):
        cells = []
        for other, value, error in zip(names, values, spread, strict=True):
            share = number(value)
            shade = min(max(round(share * _SHADES), 0), _SHADES)
            own = "cell self" if other == name else f"cell k{shade}"
            cells.append(tag("td", percent(share, 1), _error(number(error)), class_=own))
        lines.append(tag("tr", tag("th", _name(name), scope="row"), *cells))
    title = f"Overlap of {order_name(entry['order'])}"
    return tag(
        "figure",
        tag("figcaption", tag("b", title)),
        tag(
            "div",
            tag("table", tag("thead", tag("tr", *head)), tag("tbody", *lines), class_="matrix"),
            class_="scroll",
            tabindex="0",
            role="region",
            aria_label=title,
        ),
        id=f"overlap-{int(entry['order'])}",
    )


def _error(error: float) -> Html | None:
    return tag("small", f" ±{100 * error:.1f}") if error > 0 else None


def _name(name: str) -> Html:
    plain = name.isprintable()
    return tag("bdi", name[:120] if plain else visible(name[:120]))
