"""What a next-token table knows of a held-out text, beside n-grams that were counted exactly."""

from __future__ import annotations

from collections.abc import Mapping

from engram_cli.report.bars import Bar, BarChart, Group, Slot
from engram_cli.report.frame import legend
from engram_cli.report.markup import Html
from engram_cli.report.numbers import brief, count, number, percent
from engram_cli.report.scales import Axis
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import Entry, entries, order_name
from engram_cli.report.sections.occupancy import percent_tick
from engram_cli.report.tables import figure, table

_COUNTED, _TABLE = 7, 0  # colors
_PREFIX = "table, "


def probe(document: Document) -> Section | None:
    """Bars of what each model puts first, of their perplexities, and the figures."""
    found = document.get("probe")
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise TypeError("'probe' is no object")
    rows = entries(found, "rows")
    known = ", ".join(
        f"{percent(number(share))} of the {order_name(order)}"
        for order, share in found["known"].items()
    )
    told = (
        f"{count(found['positions'])} positions of a text that was held out, and the token that "
        f"follows each. The counted models are exact n-grams of the corpus that filled the table; "
        f"it has {known} of those positions. The table alone, all orders combined, reaches "
        f"{percent(number(found['of_exact']))} of what the longest exact back-off puts first."
    )
    keys = legend(("counted exactly", "bar", _COUNTED), ("read from the table", "bar", _TABLE))
    body = (
        figure(_first(rows), "Right first choice", keys=keys),
        figure(_perplexity(rows), "Perplexity, lower is better", keys=keys),
        table(("model", ">right first", ">perplexity"), _cells(rows), caption="Probe"),
    )
    return Section(
        title="What the table knows",
        lead=told,
        body=body,
    )


def _first(rows: list[Entry]) -> BarChart:
    return BarChart(
        name="probe-first",
        title="Right first choice",
        description="A bar for each model: the share of positions whose true token it puts first.",
        x_title="",
        y=Axis(title="share of positions", low=0.0, most=1.0, format=percent_tick),
        groups=_groups(rows, "top1"),
    )


def _perplexity(rows: list[Entry]) -> BarChart:
    said = [entry for entry in rows if entry["perplexity"] is not None]
    return BarChart(
        name="probe-perplexity",
        title="Perplexity",
        description="A bar for each model that gives chances: its perplexity, on a log axis.",
        x_title="",
        y=Axis(title="perplexity", log=True, low=1.0, format=brief),
        groups=_groups(said, "perplexity"),
        y_value=lambda value: f"{value:,.1f}",
    )


def _groups(rows: list[Entry], key: str) -> tuple[Group, ...]:
    """The counted models, then the table's."""
    ours = [entry for entry in rows if str(entry["model"]).startswith(_PREFIX)]
    counted = [entry for entry in rows if entry not in ours]
    return tuple(
        Group(
            label=label,
            slots=tuple(
                Slot(
                    label=_short(str(entry["model"])),
                    title=str(entry["model"]),
                    bars=(Bar(label=label, color=color, value=number(entry[key])),),
                )
                for entry in own
            ),
        )
        for label, own, color in (("exact", counted, _COUNTED), ("table", ours, _TABLE))
        if own
    )


def _short(model: str) -> str:
    """ "2-grams" of "exact 2-grams, backing off"; "1 head" of "table, 2-grams, one head"."""
    if model.endswith("one head"):
        return "1 head"
    return model.removeprefix(_PREFIX).removeprefix("exact ").partition(",")[0]


def _cells(rows: list[Entry]) -> list[tuple[str | Html, ...]]:
    return [
        (
            str(entry["model"]),
            percent(number(entry["top1"])),
            "-" if entry["perplexity"] is None else f"{number(entry['perplexity']):,.1f}",
        )
        for entry in rows
    ]
