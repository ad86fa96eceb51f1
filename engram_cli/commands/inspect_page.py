"""Draws an inspection: its result as views, and those as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from engram_cli.commands.inspect_rows import Columns, NormBins
from engram_cli.commands.probe import ProbeResult, ProbeRow
from engram_cli.numbers import count, percent
from engram_cli.report.page import write_page
from engram_cli.view import (
    Axis,
    Bar,
    BarChart,
    Cell,
    Column,
    Curve,
    Estimate,
    Group,
    LineChart,
    Ngram,
    Page,
    Row,
    Slot,
    Table,
    View,
    by_layer,
    grouped,
    order_color,
    order_name,
    share_axis,
)

if TYPE_CHECKING:
    from engram_cli.commands.inspect import InspectResult

_SAID = {True: "yes", False: "no", None: "not at hand"}
_MOST_BINS = 60  # drawn; wider bins where there are more
_COUNTED, _TABLE = 7, 0  # colors
_PREFIX = "table, "


def write_inspection(result: InspectResult, name: str, path: Path, *, force: bool) -> None:
    """Write what was found of the artifact `name` as one HTML page. Raises OutputError."""
    document = json.loads(json.dumps(asdict(result), default=str)) | {"name": name}
    for said in ("seconds", "report"):  # the same artifact gives the same page
        del document[said]
    size = f"{result.stored_bytes:,} bytes in {result.files:,} files"
    page = Page(
        kicker="Engram · inspection",
        heading="What this artifact holds",
        title=f"Engram {result.kind}: {name}",
        facts=(*((fact.capitalize(), said) for fact, said in result.facts), ("On disk", size)),
        views=tuple(inspection_views(result)),
        data=document,
    )
    write_page(page, path, force=force)


def inspection_views(result: InspectResult) -> Iterator[View]:
    """Return the views of an inspection, of those parts that were found."""
    if result.digests:
        yield _digests(result)
    if result.probe is not None:
        yield probe_view(result.probe)
    if result.norms:
        yield _norms(result)
    used = [column for column in result.columns if column.hit_rows is not None]
    if used:
        yield _rows_used(used)
    if result.hottest:
        yield _hottest(result)
    if result.layers:
        yield _duplicates(result)
    if result.layout:
        yield _heads(result)


def _digests(result: InspectResult) -> View:
    columns = (
        Column(name="of", kind="text"),
        Column(name="digest", kind="digest"),
        Column(name="must match", kind="text"),
        Column(name="matches", kind="text"),
    )
    rows = tuple(
        (each.name, each.value, each.must_match, _SAID[each.matches]) for each in result.digests
    )
    return View(
        name="digests",
        title="Digests",
        lead="Artifacts go together only where these are equal: equal sizes are not equal maps.",
        parts=(Table(title="Digests", columns=columns, rows=rows),),
    )


def _norms(result: InspectResult) -> View:
    charts = [
        _norm_chart(layer, suffix, own)
        for layer, suffix, own in by_layer(result.norms, lambda bins: bins.layer)
    ]
    return View(
        name="norms",
        title="Norms of rows",
        lead="The length of each row as a vector; zero rows are left out. Rows that training has "
        "moved stand apart from those it has not; a second hump is often the rows that were never "
        "hit.",
        parts=(Row(parts=tuple(charts)),),
    )


def _norm_chart(layer: int, suffix: str, own: list[NormBins]) -> LineChart:
    lows = sorted({low for bins in own for low in bins.low})
    edges = [*lows[: -1 : -(-(len(lows) - 1) // _MOST_BINS) or 1], lows[-1]]
    curves = tuple(
        Curve(
            label=order_name(bins.order),
            color=order_color(bins.order),
            points=tuple((float(i), rows) for i, rows in enumerate(_summed(bins, edges))),
            step=True,
        )
        for bins in own
    )
    return LineChart(
        name=f"norms-{layer}",
        title=f"Rows by norm{suffix}",
        description="A stepped line for each order: how many rows have a norm in a bin.",
        x=Axis(title="norm, from", labels=tuple(f"{low:.3g}" for low in edges[:-1])),
        y=Axis(title="rows", low=0.0),
        curves=curves,
        places=tuple(f"norm {low:.4g} to {high:.4g}" for low, high in pairwise(edges)),
        spark=True,
    )


def _summed(bins: NormBins, edges: list[float]) -> list[float]:
    """Return the rows of an order by bins between `edges`."""
    sums, at = [0.0] * (len(edges) - 1), 0
    for low, rows in zip(bins.low, bins.rows, strict=False):
        while at + 1 < len(sums) and low >= edges[at + 1]:
            at += 1
        sums[at] += rows
    return sums


def _rows_used(columns: list[Columns]) -> View:
    charts = [
        BarChart(
            name=f"rows-used-{layer}",
            title=f"Rows with a hit{suffix}",
            description="A bar for each head: the share of its rows with a hit.",
            y=share_axis("share of rows"),
            groups=tuple(
                Group(label=order_name(order), slots=tuple(_used_slot(each) for each in heads))
                for order, heads in grouped(own, lambda column: column.order).items()
            ),
            height=300,
        )
        for layer, suffix, own in by_layer(columns, lambda column: column.layer)
    ]
    return View(
        name="rows-used",
        title="Rows the corpus uses",
        lead="The share of each head's rows with at least one hit. The others never get a "
        "gradient from this corpus: what they hold is what they were filled with.",
        parts=(Row(parts=tuple(charts)),),
    )


def _used_slot(column: Columns) -> Slot:
    share = (column.hit_rows or 0) / column.rows
    bar = Bar(label="rows with a hit", color=order_color(column.order), value=share)
    title = f"{order_name(column.order)}, head {column.head}"
    return Slot(label=f"{column.head}", title=title, bars=(bar,))


def _hottest(result: InspectResult) -> View:
    rows = tuple(
        (
            *(each.layer, each.order, each.head, each.row, each.hits),
            tuple(
                Ngram(text=own.text, count=Estimate(value=own.count, bound=not own.exact))
                for own in each.ngrams
            )
            or "none known",
            each.known,
        )
        for each in result.hottest
    )
    columns = (
        *(Column(name=name) for name in ("layer", "order", "head", "row", "hits")),
        Column(name="known n-grams (count)", kind="ngrams"),
        Column(name="of"),
    )
    return View(
        name="hottest",
        title="Hottest rows",
        lead="The rows with the most hits, and which n-grams known to the statistics fall on "
        "them. A frequent n-gram heats a row in each head; what else is there must live with it.",
        parts=(Table(title="Hottest rows", columns=columns, rows=rows),),
    )


def _duplicates(result: InspectResult) -> View:
    rows: list[tuple[Cell, ...]] = []
    twins: list[tuple[Cell, ...]] = []
    for each in result.layers:
        own = each.duplicates
        distinct = Estimate(value=own.distinct, error=own.distinct_error)
        rows.append((each.layer, own.rows, distinct, own.twin_share))
        twins += [(each.layer, twin.rows, twin.first, twin.second) for twin in own.twins]
    columns = (
        *(Column(name=name) for name in ("layer", "rows with values", "distinct contents")),
        Column(name="equal to another row", kind="percent"),
    )
    parts = [Table(title="Duplicate rows", columns=columns, rows=tuple(rows))]
    if twins:
        names = tuple(Column(name=name) for name in ("layer", "equal rows", "row", "and row"))
        title = "The largest groups of duplicate rows"
        parts.append(Table(title=title, columns=names, rows=tuple(twins)))
    return View(
        name="duplicates",
        title="Duplicate rows",
        lead="Rows with the same bytes, estimated from a sample that rows choose by the hash of "
        "their bytes. Trained rows differ: duplicates are rows that training never moved apart.",
        parts=tuple(parts),
    )


def _heads(result: InspectResult) -> View:
    known = {(each.layer, each.order, each.head): each for each in result.columns}
    rows = tuple(
        (
            *(each.layer, each.order, each.head, each.modulus, each.offset),
            *_contents(known.get((each.layer, each.order, each.head))),
        )
        for each in result.layout
    )
    whole = ("layer", "order", "head", "rows", "first row", "rows hit", "most hits", "zero rows",
             "not finite")  # fmt: skip
    norms = ("mean norm", "least", "most", "mean, hit", "mean, not hit")
    columns = (
        *(Column(name=name) for name in whole),
        *(Column(name=name, kind="decimal") for name in norms),
    )
    return View(
        name="heads",
        title="The heads",
        lead="The layout column by column: its rows, where they begin in the layer's table, and "
        "what they hold.",
        parts=(Table(title="Heads", columns=columns, rows=rows),),
    )


def _contents(own: Columns | None) -> tuple[Cell, ...]:
    if own is None:
        return (None,) * 9
    return (
        *(own.hit_rows, own.max_hits, own.zero, own.not_finite),
        *(own.mean, own.least, own.most, own.hit_mean, own.unhit_mean),
    )


def probe_view(found: ProbeResult) -> View:
    """Return the view of what a next-token table knows, compared with exact n-grams."""
    known = ", ".join(
        f"{percent(share)} of the {order_name(order)}" for order, share in found.known.items()
    )
    charts = (
        BarChart(
            name="probe-first",
            title="Right first choice",
            description="A bar for each model: the share of positions whose true token it puts "
            "first.",
            y=share_axis("share of positions"),
            groups=_models([(row, row.top1) for row in found.rows]),
            height=300,
        ),
        BarChart(
            name="probe-perplexity",
            title="Perplexity, lower is better",
            description="A bar for each model that gives probabilities: its perplexity, on a log "
            "axis.",
            y=Axis(title="perplexity", unit="decimal", log=True, low=1.0),
            groups=_models(
                [(row, row.perplexity) for row in found.rows if row.perplexity is not None]
            ),
            height=300,
        ),
    )
    columns = (
        Column(name="model", kind="text"),
        Column(name="right first", kind="percent"),
        Column(name="perplexity", kind="decimal", digits=1),
    )
    rows = tuple((row.model, row.top1, row.perplexity) for row in found.rows)
    return View(
        name="probe",
        title="What the table knows",
        lead=f"{count(found.positions)} positions of a text that was held out, and the token that "
        f"follows each. The counted models are exact n-grams of the corpus that filled the table; "
        f"it has {known} of those positions. The table alone, all orders combined, reaches "
        f"{percent(found.of_exact)} of what the longest exact back-off puts first.",
        parts=(*charts, Table(title="Next token", columns=columns, rows=rows)),
    )


def _models(rows: list[tuple[ProbeRow, float]]) -> tuple[Group, ...]:
    """Return the counted models, then those of the table."""
    kinds = (("counted exactly", _COUNTED, False), ("read from the table", _TABLE, True))
    return tuple(
        Group(
            label=label,
            slots=tuple(
                Slot(
                    label=_short(row.model),
                    title=row.model,
                    bars=(Bar(label=label, color=color, value=value),),
                )
                for row, value in rows
                if row.model.startswith(_PREFIX) == ours
            ),
        )
        for label, color, ours in kinds
        if any(row.model.startswith(_PREFIX) == ours for row, _ in rows)
    )


def _short(model: str) -> str:
    """Return "2-grams" for "exact 2-grams, backing off", and "1 head" for one head."""
    if model.endswith("one head"):
        return "1 head"
    return model.removeprefix(_PREFIX).removeprefix("exact ").partition(",")[0]
