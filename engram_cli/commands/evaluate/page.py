"""Draws an evaluation: its result as views for the terminal, and as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from engram_cli.charts import Axis, Curve, LineChart
from engram_cli.commands.evaluate.parts import FREQUENCY, POSITION
from engram_cli.commands.evaluate.passages import BEGINNING, HELPS, HURTS
from engram_cli.commands.evaluate.result import (
    Breakdown,
    Difference,
    EvaluateResult,
    Passage,
    TokenChange,
)
from engram_cli.numbers import count
from engram_cli.report.page import write_page
from engram_cli.view import (
    Cell,
    Column,
    Estimate,
    Page,
    Part,
    Row,
    Shades,
    Summary,
    Table,
    Tiles,
    View,
)

NAMES = {
    "bare": "model alone",
    "memory": "memory",
    "patched": "memory + patches",
    "lora": "LoRA",
    "lora_memory": "LoRA + memory",
}
_WHO = {
    "bare": "the model alone",
    "memory": "the memory",
    "patched": "the memory with patches",
    "lora": "LoRA",
    "lora_memory": "LoRA with the memory",
}
_COLORS = {"bare": 7, "memory": 0, "patched": 3, "lora": 1, "lora_memory": 2}
_SCALES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # nats that get the full colour
_BOUNDS = "known n-grams are upper bounds: rows are shared"
_MINUS = "\u2212"
_TEXTS = {
    BEGINNING: ("Beginnings of documents", "beginning"),
    HELPS: ("Where it helps most", "helps"),
    HURTS: ("Where it hurts most", "hurts"),
}


def write_evaluation(result: EvaluateResult, path: Path, *, force: bool) -> None:
    """Write an evaluation as one HTML page. Raises OutputError."""
    document = json.loads(json.dumps(asdict(result), default=str))
    for said in ("seconds", "report", "process"):
        del document[said]
    facts = [("Model", str(result.checkpoint))]
    origins = {
        "Memory": result.bundle,
        "Patches": ", ".join(map(str, result.patches)),
        "Adapter": result.adapter,
        "Statistics": result.statistics,
    }
    facts += [(name, str(own)) for name, own in origins.items() if own]
    facts.append(("Text", described(result)))
    page = Page(
        kicker="Engram · evaluation",
        heading="What the memory does to the loss",
        title=f"Engram evaluation: {result.checkpoint.name or result.checkpoint}",
        facts=tuple(facts),
        views=tuple(evaluation_views(result)),
        data=document,
    )
    write_page(page, path, force=force)


def described(result: EvaluateResult) -> str:
    """Return what was read, in a sentence."""
    size = "" if result.bytes is None else f" of {count(result.bytes)} bytes"
    return (
        f"{count(result.documents)} document{'s' * (result.documents != 1)}{size}, "
        f"{count(result.scored)} tokens predicted "
        f"(context {count(result.context)}, stride {count(result.stride)})"
    )


def evaluation_views(result: EvaluateResult) -> Iterator[View]:
    """Return the views of an evaluation, of those parts that were found."""
    yield _losses(result)
    parted = {each.name: each for each in result.breakdowns}
    known = [each for name, each in parted.items() if name not in (FREQUENCY, POSITION)]
    if known:
        yield _known(known, result.exact)
    yield _curves(parted[FREQUENCY], "Token frequency", "Tokens by how often they occur in this "
                  "text. Frequent tokens are mostly easy already.")  # fmt: skip
    yield _curves(parted[POSITION], "Position", "Tokens by how many tokens the model had read "
                  "before them. With little context the model knows least by itself.")  # fmt: skip
    if result.gates:
        yield _gates(result)
    if result.gaining or result.losing:
        yield _tokens(result)
    for kind in (HELPS, HURTS, BEGINNING):
        own = [passage for passage in result.passages if passage.kind == kind]
        if own:
            yield _passages(kind, own, result.differences[0])


def interval_text(difference: Difference) -> str:
    """Return a difference with its interval: +0.123 (+0.096 to +0.150)."""
    if difference.low is None or difference.high is None:
        return _signed(difference.mean)
    return f"{_signed(difference.mean)} ({_signed(difference.low)} to {_signed(difference.high)})"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", _MINUS) if value else "0.0000"


def _losses(result: EvaluateResult) -> View:
    columns = (
        Column("model", "text"),
        Column("nats per token", "decimal", 4),
        Column("perplexity", "decimal", 3),
        Column("bits per byte", "decimal", 4),
        Column("tokens/s", "count"),
    )
    rows = tuple(
        (NAMES[own.variant], _estimate(own.loss, own.error), own.perplexity, own.bits_per_byte,
         own.tokens_per_second)
        for own in result.losses
    )  # fmt: skip
    parts: list[Part] = [Table("Losses", columns, rows, note="± is the standard error")]
    if result.differences:
        differences = (
            Column("difference", "text"),
            Column("nats per token", "text"),
            Column("of the loss", "percent", 2),
        )
        losses = {own.variant: own.loss for own in result.losses}
        compared = tuple(
            (f"{NAMES[own.variant]} {_MINUS} {NAMES[own.than]}", interval_text(own),
             own.mean / losses[own.than] if losses[own.than] else 0.0)
            for own in result.differences
        )  # fmt: skip
        note = "95 % interval over documents" if result.differences[0].low is not None else ""
        parts.append(Table("Differences", differences, compared, note=note))
        said = [each for each in result.differences[1:] if each.variant == "patched"]
        headlines = [Summary(headline(each)) for each in (result.differences[0], *said)]
        parts[:0] = [*headlines, _tiles(result)]
    return View(
        name="losses",
        title="Losses",
        lead="The loss of the same tokens under each variant of the model. Below zero, a "
        "difference is an improvement.",
        parts=tuple(parts),
    )


def headline(first: Difference) -> str:
    """Return in words what the first difference says, and how sure it is."""
    who, than = (_WHO[name] for name in (first.variant, first.than))
    if not (first.mean or first.low or first.high):
        return f"On this text {who} changes nothing: the loss is that of {than}."
    size = f"{abs(first.mean):.4f}" if abs(first.mean) >= 5e-5 else "less than 0.0001"
    if first.low is None or first.high is None:
        side = "below" if first.mean < 0.0 else "above"
        return (f"On this text the loss of {who} is {size} nats per token {side} that of {than}. "
                "There are too few documents to say how certain that is.")  # fmt: skip
    if first.low <= 0.0 <= first.high:
        return f"No difference between {who} and {than} is certain on this text."
    does = "lowers" if first.mean < 0.0 else "raises"
    return (f"Compared with {than}, {who} {does} the loss by {size} nats per token "
            "(95 % interval over documents).")  # fmt: skip


def _tiles(result: EvaluateResult) -> Tiles:
    first = result.differences[0]
    by_name = {own.variant: own for own in result.losses}
    entries = [
        (f"{own.loss:.4f}", f"{NAMES[own.variant]}, nats per token",
         f"perplexity {own.perplexity:.2f}")
        for own in (by_name[first.than], by_name[first.variant])
    ]  # fmt: skip
    interval = "no interval: too few documents"
    if first.low is not None and first.high is not None:
        interval = f"95 %: {_signed(first.low)} to {_signed(first.high)}"
    entries.append((_signed(first.mean), "difference, nats per token", interval))
    return Tiles(tuple(entries))


def _known(breakdowns: list[Breakdown], exact: bool) -> View:
    bounds = "" if exact else _BOUNDS
    tables: list[Part] = [_table(each, bounds) for each in breakdowns]
    return View(
        name="known",
        title="What the memory could know",
        lead="A memory learns of an n-gram where its corpus has it. The rows that it adds belong "
        "to the n-gram that ends before the predicted token. An n-gram that is not alone on its "
        "rows shares them with others.",
        parts=tuple(tables),
    )


def _table(breakdown: Breakdown, remark: str = "") -> Table:
    """Return the parts of the text as a table; `remark`: what else to note about it."""
    first = breakdown.parts[0]
    whole = sum(part.tokens for part in breakdown.parts)
    single = len(first.differences) == 1
    columns = [
        Column("part", "text"),
        Column("number"),
        Column("share", "percent", 1),
        *(Column(NAMES[name], "decimal", 3) for name in first.losses),
        *(
            Column(
                "difference" if single else f"{NAMES[each.variant]} {_MINUS} {NAMES[each.than]}",
                "decimal",
                3,
            )
            for each in first.differences
        ),
    ]
    if single:
        columns.append(Column("adds", "decimal", 4))
    rows: list[tuple[Cell, ...]] = []
    for part in breakdown.parts:
        empty = not part.tokens
        rows.append(
            (
                part.label,
                part.tokens,
                part.tokens / whole if whole else 0.0,
                *(None if empty else loss for loss in part.losses.values()),
                *(None if empty else _reach(each) for each in part.differences),
                *(part.share if single else ()),
            )
        )
    measured = any(each.low is not None for part in breakdown.parts for each in part.differences)
    notes = ("± is half of the 95 % interval" if measured else "", remark)
    note = "; ".join(each for each in notes if each)
    return Table(breakdown.title, tuple(columns), tuple(rows), note=note)


def _reach(difference: Difference) -> Estimate:
    if difference.high is None:
        return Estimate(difference.mean)
    return Estimate(difference.mean, difference.high - difference.mean)


def _estimate(value: float, error: float | None) -> Estimate:
    return Estimate(value, error or 0.0)


def _curves(breakdown: Breakdown, title: str, lead: str) -> View:
    """Return the losses over bands of the text as curves and as a table."""
    parts: list[Part] = [_table(breakdown)]
    labels = tuple(part.label for part in breakdown.parts)
    filled = [(at, part) for at, part in enumerate(breakdown.parts) if part.tokens]
    if len(filled) > 1:
        curves = tuple(
            Curve(
                NAMES[name],
                _COLORS[name],
                tuple((float(at), part.losses[name]) for at, part in filled),
                dots=True,
            )
            for name in breakdown.parts[0].losses
        )
        chart = LineChart(
            name=f"{breakdown.name}-losses",
            title=f"Loss by {title.lower()}",
            description=f"The loss of each variant in nats per token, by {title.lower()}.",
            x=Axis(breakdown.title.lower(), labels=labels),
            y=Axis("nats per token", "decimal", low=0.0),
            curves=curves,
        )
        parts.insert(0, chart)
    return View(name=breakdown.name, title=title, lead=lead, parts=tuple(parts))


def _gates(result: EvaluateResult) -> View:
    thresholds = list(result.gates[0].above)
    columns = (
        Column("layer", "text"),
        Column("mean gate", "decimal", 3),
        *(Column(f"≥ {each}", "percent", 1) for each in thresholds),
        Column("added", "percent", 2),
    )
    several = len({own.memory for own in result.gates}) > 1
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (f"{f'{own.memory}, ' if several else ''}decoder layer {own.decoder_layer}", own.mean,
         *own.above.values(), own.added)
        for own in result.gates
    )  # fmt: skip
    return View(
        name="gates",
        title="Gates",
        lead="How far the gates opened, on average and as shares of all gates, and the norm of "
        "what was added as a share of the hidden state's.",
        parts=(Table("Gates", columns, rows),),
    )


def _tokens(result: EvaluateResult) -> View:
    columns = (
        Column("token", "ngram"),
        Column("times"),
        Column("each", "decimal", 3),
        Column("in all", "decimal", 1),
    )

    def table(title: str, changes: tuple[TokenChange, ...]) -> Table:
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (own.text.replace(" ", "␣") or "·", own.count, own.mean, own.total) for own in changes
        )
        return Table(title, columns, rows)

    return View(
        name="tokens",
        title="Tokens that change most",
        lead="The tokens whose losses change most in all, in nats; those that occur at least "
        "three times.",
        parts=(Row((table("Gain", result.gaining), table("Lose", result.losing))),),
        shown="page",
    )


def _passages(kind: str, passages: list[Passage], contrast: Difference) -> View:
    """Return passages with each token coloured by its difference."""
    changes = [
        [after - before for after, before in zip(
            own.losses[contrast.variant], own.losses[contrast.than], strict=True)]
        for own in passages
    ]  # fmt: skip
    sizes = sorted(abs(change) for own in changes for change in own)
    high = sizes[int(0.95 * (len(sizes) - 1))]
    scale = next((each for each in _SCALES if each >= high), _SCALES[-1])
    parts: list[Part] = []
    for own, change in zip(passages, changes, strict=True):
        mean = sum(change) / len(change)
        where = f"{own.name or f'document {own.document}'}, from token {count(own.position)} on"
        parts.append(_coloured(own, change, scale, where, f"{_signed(mean)} nats per token"))
        parts.append(_numbers(own, change, contrast, where))
    title, name = _TEXTS[kind]
    return View(
        name=name,
        title=title,
        lead=f"Each token by the difference of its loss, {NAMES[contrast.variant]} {_MINUS} "
        f"{NAMES[contrast.than]}. Blue: the loss falls. Orange and underlined: it rises.",
        parts=tuple(parts),
        shown="page",
    )


def _coloured(own: Passage, changes: list[float], scale: float, where: str, mean: str) -> Shades:
    shown = f"{scale:g} nats"
    return Shades(
        pieces=own.pieces,
        shades=tuple(min(max(-change / scale, -1.0), 1.0) for change in changes),
        notes=tuple(f"{_signed(change)} nats" for change in changes),
        title=where,
        note=mean,
        legend=(
            (1.0, f"falls by {shown} or more"),
            (0.4, f"falls by {0.4 * scale:g}"),
            (0.0, "the same"),
            (-0.4, f"rises by {0.4 * scale:g}"),
            (-1.0, f"rises by {shown} or more"),
        ),
    )


def _numbers(own: Passage, changes: list[float], contrast: Difference, where: str) -> Table:
    columns = (
        Column("token", "ngram"),
        Column(NAMES[contrast.than], "decimal", 2),
        Column(NAMES[contrast.variant], "decimal", 2),
        Column("difference", "decimal", 2),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (piece.replace(" ", "␣") or "·", before, after, change)
        for piece, before, after, change in zip(
            own.pieces,
            own.losses[contrast.than],
            own.losses[contrast.variant],
            changes,
            strict=True,
        )
    )
    return Table(where, columns, rows, folded=True)
