"""What vocabulary compression is worth: the same corpus without it."""

from __future__ import annotations

from engram_cli.report.bars import Bar, BarChart, Group, Slot
from engram_cli.report.frame import legend
from engram_cli.report.numbers import brief, count, mean, number, percent
from engram_cli.report.scales import Axis
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import Entry, by, color_of, entries, order_name
from engram_cli.report.sections.occupancy import percent_tick
from engram_cli.report.tables import figure, row, table


def compression(document: Document) -> Section | None:
    """Distinct n-grams and sharing with and without compression."""
    without = document.get("uncompressed")
    if not without:
        return None
    before = {entry["order"]: entry for entry in entries(without, "orders")}
    shared_before = by(entries(without, "columns"), "order")
    shared_after = by(entries(document, "columns"), "order")
    rows = []
    ngrams: list[Slot] = []
    sharing: list[Slot] = []
    for entry in entries(document, "orders"):
        order = entry["order"]
        if order not in before:
            continue
        name, color = order_name(order), color_of(order)
        old, new = number(before[order]["distinct"]), number(entry["distinct"])
        old_use = _by_use(shared_before.get(order, []))
        new_use = _by_use(shared_after.get(order, []))
        old_share = mean(number(each["shared"]) for each in shared_before.get(order, []))
        new_share = mean(number(each["shared"]) for each in shared_after.get(order, []))
        saved = 1.0 - new / old if old else 0.0
        rows.append((name, _distinct(before[order]), _distinct(entry), percent(saved),
                     percent(old_share), percent(new_share), old_use, new_use))  # fmt: skip
        for into, a, b in ((ngrams, old, new), (sharing, old_share, new_share)):
            bars = (Bar(label="without", color=color, value=a, light=True),
                    Bar(label="with", color=color, value=b))  # fmt: skip
            into.append(Slot(label=name, bars=bars))
    if not rows:
        return None
    keys = legend(("raw token ids", "light", 7), ("compressed vocabulary", "bar", 7))
    charts = [
        figure(BarChart(name="worth-ngrams", title="Distinct n-grams with and without compression",
                        description="Two bars for each order.", x_title="",
                        y=Axis(title="distinct n-grams", low=0.0),
                        groups=(Group(label="", slots=tuple(ngrams)),), height=280, y_value=brief),
               "Distinct n-grams", keys=keys, half=True),
        figure(BarChart(name="worth-sharing", title="Sharing with and without compression",
                        description="Two bars for each order.", x_title="",
                        y=Axis(title="n-grams that share their row", low=0.0, most=1.0,
                               format=percent_tick),
                        groups=(Group(label="", slots=tuple(sharing)),), height=280),
               "N-grams that share their row", note="mean of all heads", keys=keys, half=True),
    ]  # fmt: skip
    names = ("", ">n-grams, raw ids", ">compressed", ">fewer", ">sharing, raw ids", ">compressed",
             ">by use, raw ids", ">compressed")  # fmt: skip
    return Section(
        title="What vocabulary compression is worth",
        lead="Compression gives look-alike tokens one id, so that spellings of the same n-gram "
        "meet on one row: fewer distinct n-grams, fewer n-grams that share a row.",
        body=(row(*charts), table(names, rows, caption="With and without compression")),
    )


def _distinct(entry: Entry) -> str:
    """How many n-grams, with the standard error."""
    error = number(entry["distinct_error"])
    return count(entry["distinct"]) + (f" ±{count(error)}" if error > 0 else "")


def _by_use(columns: list[Entry]) -> str:
    """The mean share of look-ups that share their row, with its standard error in points."""
    share = mean(number(each["shared_occurrences"]) for each in columns)
    error = mean(number(each["shared_occurrences_error"]) for each in columns)
    return percent(share) + (f" ±{100 * error:.1f}" if error > 0 else "")
