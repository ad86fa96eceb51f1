"""Draws an inspection: its result as views, and those as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from engram_cli.charts import (
    Axis,
    Bar,
    BarChart,
    Group,
    LineChart,
    Slot,
    by_head,
    order_curve,
    order_name,
    share_axis,
)
from engram_cli.commands.checks_view import checks_view, layers_view
from engram_cli.commands.inspect.duplicates_view import duplicates_view
from engram_cli.commands.inspect.result import InspectResult, NormBins
from engram_cli.numbers import count, counted, percent
from engram_cli.report.page import write_page
from engram_cli.view import (
    Cell,
    Column,
    Estimate,
    Ngram,
    Page,
    Summary,
    Table,
    View,
    by_layer,
    counts,
    percents,
)

if TYPE_CHECKING:
    from engram_cli.commands.probe import ProbeResult
    from engram_cli.table.scan.scan import Columns

_SAID = {True: "yes", False: "no", None: "not at hand"}
_MOST_BINS = 60  # drawn; wider bins where there are more
_COUNTED, _TABLE = 7, 0  # colors
_PREFIX = "table, "
_RARE = 0.2  # a standard error of so much of a number of rows, or more, says too little


def write_inspection(result: InspectResult, name: str, path: Path, *, force: bool) -> None:
    """Write what was found of the artifact `name` as one HTML page. Raises OutputError."""
    document = json.loads(json.dumps(asdict(result), default=str)) | {"name": name}
    for said in ("seconds", "report"):  # the same artifact gives the same page
        del document[said]
    size = f"{result.stored_bytes:,} bytes in {counted(result.files, 'file')}"
    page = Page(
        kicker="Engram · inspection",
        heading=f"What {name} holds",
        title=f"Engram {result.kind}: {name}",
        facts=(("Artifact", result.kind), ("On disk", size)),
        views=(_summary(result), *inspection_views(result)),
        data=document,
    )
    write_page(page, path, force=force)


def sampled(result: InspectResult) -> str:
    """Say which rows were read, and what the errors are."""
    rows = sum(each.rows for each in result.columns)
    read = f"{result.rows_read:,} of {rows:,} rows, evenly spread"
    errors = "\u00b1 is a standard error, \u2264 an upper bound (95 % confidence)"
    return f"{read}; {errors}, least and most are those of the sample"


def _summary(result: InspectResult) -> View:
    """Draw what was found in sentences, then the facts."""
    return View(
        name="summary",
        title="Summary",
        lead="",
        parts=(Summary(" ".join(_sentences(result)), result.facts),),
    )


def _sentences(result: InspectResult) -> Iterator[str]:
    """Yield what matters first: whether it is whole and goes together, and what rows hold."""
    differs = [check for check in result.checks if check.result == "differs"]
    wrong = [digest.name for digest in result.digests if digest.matches is False]
    if not result.complete:
        yield f"This table is not finished: {dict(result.facts)['to go on']}."
        return
    if differs:
        yield f"{counted(len(differs), 'check')} of {len(result.checks)} found a difference."
    if wrong:
        yield f"It does not go with the artifacts next to it: {', '.join(wrong)} differs."
    if not differs and not wrong:
        yield "It goes with everything that was found next to it."
    scanned = [each for each in result.columns if each.zero is not None]
    rows = sum(each.rows for each in result.columns)
    if scanned:
        zero = sum(each.zero or 0 for each in scanned)
        broken = sum(each.not_finite or 0 for each in scanned)
        about = f"{count(result.rows_read)} were read: by these, about " if result.sampled else ""
        yield (
            f"Of its {count(rows)} rows, {about}{count(zero)} are zero and {count(broken)} are not "
            "finite."
        )
    used = [each for each in result.columns if each.hit_rows is not None]
    if used:
        share = sum(each.hit_rows or 0 for each in used) / max(sum(e.rows for e in used), 1)
        yield f"The corpus uses {percent(share)} of them."
    layers = [own.duplicates for own in result.duplicates]
    if layers and 0 < (twins := max(layers, key=lambda own: own.twin_share)).twin_share < 1:
        most = "At most " if twins.bound else "About " if twins.contents_read < 1 else ""
        yield f"{most}{percent(twins.twin_share)} of the rows equal another row."


def inspection_views(result: InspectResult) -> Iterator[View]:
    """Return the views of an inspection, of those parts that were found."""
    if result.foreign and result.layers:
        yield layers_view(result.layers)
    if result.checks:
        yield checks_view(result.checks)
    if result.digests:
        yield _digests(result)
    if result.probe is not None:
        yield probe_view(result.probe)
    if result.norms:
        yield View(
            name="norms",
            title="Norms of rows",
            lead="The length of each row as a vector; zero rows are left out. Rows that training "
            "has moved stand apart from those it has not; a second hump is often the rows that "
            "were never hit.",
            parts=by_layer(result.norms, _norm_chart),
        )
    used = [column for column in result.columns if column.hit_rows is not None]
    if used:
        yield View(
            name="rows-used",
            title="Rows the corpus uses",
            lead="The share of each head's rows with at least one hit. The others never get a "
            "gradient from this corpus: what they hold is what they were filled with.",
            parts=by_layer(used, _used_chart),
        )
    if result.hottest:
        yield _hottest(result)
    if result.duplicates:
        yield duplicates_view(result)
    if result.layout:
        yield _heads(result)


def _digests(result: InspectResult) -> View:
    columns = (
        *(Column("of", "text"), Column("digest", "digest")),
        *(Column("must match", "text"), Column("matches", "text", alarm="no")),
    )
    rows = tuple(
        (each.name, each.value, each.must_match, _SAID[each.matches]) for each in result.digests
    )
    return View(
        name="digests",
        title="Digests",
        lead="Artifacts go together only where these are equal: equal sizes are not equal maps.",
        parts=(Table("Digests", columns, rows),),
    )


def _norm_chart(layer: int, suffix: str, own: list[NormBins]) -> LineChart:
    lows = sorted({low for bins in own for low in bins.low})
    edges = [*lows[: -1 : -(-(len(lows) - 1) // _MOST_BINS) or 1], lows[-1]]
    return LineChart(
        name=f"norms-{layer}",
        title=f"Rows by norm{suffix}",
        description="A stepped line for each order: how many rows have a norm in a bin.",
        x=Axis("norm, from", labels=tuple(f"{low:.3g}" for low in edges[:-1])),
        y=Axis("rows", low=0.0),
        curves=tuple(
            order_curve(bins.order, enumerate(_summed(bins, edges)), step=True) for bins in own
        ),
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


def _used_chart(layer: int, suffix: str, own: list[Columns]) -> BarChart:
    return BarChart(
        name=f"rows-used-{layer}",
        title=f"Rows with a hit{suffix}",
        description="A bar for each head: the share of its rows with a hit.",
        y=share_axis("share of rows"),
        groups=by_head(own, _used),
    )


def _used(column: Columns, color: int) -> tuple[Bar, ...]:
    return (Bar("rows with a hit", color, (column.hit_rows or 0) / column.rows),)


def _hottest(result: InspectResult) -> View:
    rows = tuple(
        (
            *(each.layer, each.order, each.head, each.row, each.hits),
            tuple(Ngram(own.text, Estimate(own.count, bound=not own.exact)) for own in each.ngrams)
            or "none known",
            each.known,
        )
        for each in result.hottest
    )
    columns = (
        *counts("layer", "order", "head", "row", "hits"),
        *(Column("known n-grams (count)", "ngrams"), Column("of")),
    )
    return View(
        name="hottest",
        title="Hottest rows",
        lead="The rows with the most hits, and which n-grams known to the statistics fall on "
        "them. A frequent n-gram heats a row in each head; what else is there must live with it.",
        parts=(Table("Hottest rows", columns, rows),),
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
    norms = ("mean norm", "least", "most", "mean, hit", "mean, not hit")
    columns = (
        *counts("layer", "order", "head", "rows", "first row"),
        *counts("rows hit", "most hits", "zero rows", "not finite"),
        *(Column(name, "decimal") for name in norms),
    )
    return View(
        name="heads",
        title="The heads",
        lead="The layout column by column: its rows, where they begin in the layer's table, and "
        "what they hold.",
        parts=(Table("Heads", columns, rows, where="page"), *_layers(result)),
    )


def _layers(result: InspectResult) -> Iterator[Table]:
    """Yield a table of each layer for the terminal, which has no room for all columns of heads."""
    known = {(each.layer, each.order, each.head): each for each in result.columns}
    hits = any(column.hit_rows is not None for column in result.columns)
    norms = any(column.mean is not None for column in result.columns)
    columns = [*counts("n", "head", "rows (modulus)", "first row")]
    if hits:
        columns += [*percents("hit", digits=1), Column("most")]
    if norms:
        columns += [*counts("zero", "bad")]
        columns += [Column(name, "decimal") for name in ("norm", "least", "most")]
    for layer, said in result.multipliers:
        rows: list[tuple[Cell, ...]] = []
        for each in (column for column in result.layout if column.layer == layer):
            own = known.get((layer, each.order, each.head))
            cells: list[Cell] = [each.order, each.head, each.modulus, each.offset]
            if hits:
                share = None if own is None or own.hit_rows is None else own.hit_rows / own.rows
                cells += [share, None if own is None else own.max_hits]
            if norms:
                cells += _contents(own)[2:7]
            rows.append(tuple(cells))
        title = f"Layer {layer}, multipliers {' '.join(said)}"
        yield Table(title, tuple(columns), tuple(rows), where="terminal")


def _contents(own: Columns | None) -> tuple[Cell, ...]:
    if own is None:
        return (None,) * 9
    return (
        *(own.hit_rows, own.max_hits),
        _rows(own.zero, own.zero_error, own.zero_most),
        _rows(own.not_finite, own.not_finite_error, own.not_finite_most),
        *(_estimate(own.mean, own.mean_error), own.least, own.most),
        _estimate(own.hit_mean, own.hit_mean_error),
        _estimate(own.unhit_mean, own.unhit_mean_error),
    )


def _rows(value: int | None, error: float, most: int | None) -> Cell:
    """Return an estimated number of rows, of few rows the most that there may be."""
    if value is not None and most is not None and error > _RARE * value:
        return Estimate(most, bound=True)
    return _estimate(value, error)


def _estimate(value: float | None, error: float) -> Cell:
    return Estimate(value, error) if value is not None and error else value


def probe_view(found: ProbeResult) -> View:
    """Return the view of what a next-token table knows, compared with exact n-grams."""
    known = ", ".join(
        f"{percent(share)} of the {order_name(n)}" for n, share in found.known.items()
    )
    right = [(row.model, row.top1) for row in found.rows]
    chance = [(r.model, r.perplexity) for r in found.rows if r.perplexity is not None]
    charts = (
        BarChart(
            name="probe-first",
            title="Right first choice",
            description="A bar for each model: the share of positions whose true token it puts "
            "first.",
            y=share_axis("share of positions"),
            groups=_models(right),
        ),
        BarChart(
            name="probe-perplexity",
            title="Perplexity, lower is better",
            description="A bar for each model that gives probabilities: its perplexity, on a log "
            "axis.",
            y=Axis("perplexity", "decimal", log=True, low=1.0),
            groups=_models(chance),
        ),
    )
    columns = (
        *(Column("model", "text"), Column("right first", "percent")),
        Column("perplexity", "decimal", 1),
    )
    rows = tuple((row.model, row.top1, row.perplexity) for row in found.rows)
    return View(
        name="probe",
        title="What the table knows",
        lead=f"{count(found.positions)} positions of a text that was held out, and the token that "
        f"follows each. The counted models are exact n-grams of the corpus that filled the table; "
        f"it has {known} of those positions. The table alone, all orders combined, reaches "
        f"{percent(found.of_exact)} of what the longest exact back-off puts first.",
        parts=(*charts, Table("Next token", columns, rows)),
    )


def _models(rows: list[tuple[str, float]]) -> tuple[Group, ...]:
    """Return the counted models, then those of the table."""
    kinds = (("counted exactly", _COUNTED, False), ("read from the table", _TABLE, True))
    return tuple(
        Group(label, slots)
        for label, color, ours in kinds
        if (
            slots := tuple(
                Slot(_short(model), (Bar(label, color, value),), model)
                for model, value in rows
                if model.startswith(_PREFIX) == ours
            )
        )
    )


def _short(model: str) -> str:
    """Return "2-grams" for "exact 2-grams, backing off", and "1 head" for one head."""
    if model.endswith("one head"):
        return "1 head"
    return model.removeprefix(_PREFIX).removeprefix("exact ").partition(",")[0]
