"""engram inspect, lookup, verify, report, trace and demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, shown_path
from engram_cli.commands.requests.reading import (
    DemoRequest,
    InspectRequest,
    LookupRequest,
    ReportRequest,
    TraceRequest,
    VerifyRequest,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from engram_cli.commands.demo.command import DemoResult
    from engram_cli.commands.inspect.result import InspectResult
    from engram_cli.commands.probe import ProbeResult
    from engram_cli.commands.trace import LayerTrace, TraceResult
    from engram_cli.commands.verify.command import VerifyResult

_SHADES = ("grey50", "color(30)", "color(37)", "color(43)", "color(49)", "bold color(51)")


@command(InspectRequest)
def inspect(request: InspectRequest, terminal: Terminal) -> None:
    """Show what an artifact is, what it must match, and what its rows hold.

    Rows are read once, in constant memory: norms, zero rows, hits, hottest and duplicate rows.

    A checkpoint of another program is compared with its config and tokenizer.

    The exit code is 1 if something differs.

    With --probe, measure how well a table built with --init next-token predicts a text.
    """
    from engram_cli.commands.inspect.command import inspect as run

    result = run(request, terminal)
    terminal.result(result, *inspect_parts(result))
    if any(check.result == "differs" for check in result.checks):
        raise typer.Exit(1)


@command(LookupRequest)
def lookup(request: LookupRequest, terminal: Terminal) -> None:
    """Look up a text: show each token's row per head, its hits, its norm, and what shares it.

    Layout options apply only to a vocabulary: they show which rows a geometry would use.
    """
    from engram_cli.cli.lookup_tables import lookup_parts
    from engram_cli.commands.lookup.command import lookup as run

    result = run(request, terminal)
    terminal.result(result, *lookup_parts(result))


@command(VerifyRequest)
def verify(request: VerifyRequest, terminal: Terminal) -> None:
    """Check an artifact: its checksums, its layout, its counts and its rows.

    Rows are checked for NaN, zeros, odd scales, saturation, and shards that are there twice.

    By default a sample of the rows is read, with --full all of them.

    Exits with 0 if nothing is wrong, or lists what is wrong and exits with 1.
    """
    from engram_cli.commands.verify.command import verify as run

    result = run(request, terminal)
    terminal.result(result, *verify_parts(result))
    for line in result.not_checked:
        terminal.note(f"not checked: {line}")
    if not result.ok:
        raise typer.Exit(1)


@command(ReportRequest)
def report(request: ReportRequest, terminal: Terminal) -> None:
    """Write the statistics of a corpus as one HTML page that opens offline."""
    from engram_cli.cli.render import facts, quantity
    from engram_cli.commands.report import write_report as run

    result = run(request, terminal)
    rows = [
        ("statistics", shown_path(result.stats)),
        ("tokens", f"{result.tokens:,}"),
        ("written", f"{shown_path(result.out)}, {quantity(result.bytes, 'bytes')}"),
    ]
    terminal.result(result, facts("Report", rows))


@command(TraceRequest)
def trace(request: TraceRequest, terminal: Terminal) -> None:
    """Show where the memory is used: how far the gate opens for each token of a text."""
    from engram_cli.commands.trace import trace_text

    result = trace_text(request)
    terminal.result(result, *_gates(result))
    if result.untrained:
        named = ", ".join(own.name for own in result.layers if own.layer in result.untrained)
        terminal.note(
            f"untrained: {named}: nothing is added to any token (the value projection or the "
            "rows are zero), and the gates are as they were drawn"
        )
    if result.report is not None:
        terminal.note(f"written: {shown_path(result.report)}")


@command(DemoRequest)
def demo(request: DemoRequest, terminal: Terminal) -> None:
    """Run every step on real input: tokenizer, corpus, table, and a small model that uses it."""
    from engram_cli.commands.demo.command import run_demo

    result = run_demo(request, terminal)
    terminal.result(result, *_demo(result))


def inspect_parts(result: InspectResult) -> list[RenderableType]:
    """Return what is known of the artifact, and the tables of its views."""
    from engram_cli.cli.render import count, facts, quantity, read_text
    from engram_cli.cli.views import printed
    from engram_cli.commands.inspect.page import inspection_views, sampled

    size = f"{quantity(result.stored_bytes, 'bytes')} ({result.stored_bytes:,} bytes)"
    remote = result.read if result.read is not None and result.read.requests is not None else None
    stored = "on disk" if remote is None else "stored"
    lines: list[tuple[str, str | Text]] = [
        ("path", shown_path(result.path)),
        *result.facts,
        (stored, f"{size}, {count(result.files, 'file')}"),
    ]
    if result.stats is not None and result.kind != "statistics":
        lines.append(("statistics", shown_path(result.stats)))
    if result.read_bytes:
        pace = quantity(result.read_bytes / max(result.seconds, 1e-9), "bytes")
        lines.append(("read", f"{quantity(result.read_bytes, 'bytes')} of rows, {pace}/s"))
    if result.sampled:
        lines.append(("sample", f"{sampled(result)}; --full reads all"))
    if remote is not None:
        lines.append(("network", read_text(remote)))
    if result.report is not None:
        lines.append(("report", shown_path(result.report)))
    views = {view.name: view for view in inspection_views(result)}
    # The page has the heads at its end, where they may be long.
    order = ("stored", "checks", "digests", "heads", "norms", "hottest", "duplicates")
    tables = printed(views[name] for name in order if name in views)
    return [
        facts(result.kind if result.foreign else result.kind.capitalize(), lines),
        *tables,
        *probe_parts(result.probe),
    ]


def probe_parts(result: ProbeResult | None) -> list[RenderableType]:
    """Return the probed positions and one line for each model; nothing without a probe."""
    if result is None:
        return []
    from engram_cli.cli.render import facts, percent
    from engram_cli.cli.views import printed
    from engram_cli.commands.inspect.page import probe_view

    known = ", ".join(f"{percent(share, 1)} of the {n}-grams" for n, share in result.known.items())
    lines: list[tuple[str, str | Text]] = [
        ("probed", f"{result.positions:,} positions of {result.heldout_tokens:,} held-out tokens"),
        ("fitted on", f"{result.fitted:,} other positions"),
        ("corpus", f"{result.corpus_tokens:,} tokens; it contains {known}"),
        ("of the exact", f"{percent(result.of_exact, 1)} of the longest back-off's top-1"),
    ]
    return [facts("Probe", lines), *printed([probe_view(result)])]


def verify_parts(result: VerifyResult) -> list[RenderableType]:
    """Return one line if everything is right, else the list of what is wrong; then the checks."""
    from rich.text import Text

    from engram_cli.cli.render import count, quantity, read_text
    from engram_cli.cli.views import printed
    from engram_cli.commands.checks_view import checks_view, summary

    size = quantity(result.stored_bytes, "bytes")
    name = f"{shown_path(result.path)}: {result.kind}, {count(result.files, 'file')}, {size}"
    foreign = result.dialect is not None
    if result.ok:
        said = summary(result.checks) if foreign else ", ".join(result.checked)
        lines = [Text.assemble((name, ""), (": all right", "green"), f" ({said})")]
    else:
        wrong = count(len(result.problems), "thing")
        lines = [Text.assemble((name, ""), (f": {wrong} wrong", "bold red"))]
        lines += [Text(f"  {problem}") for problem in result.problems]
    if result.coverage is not None and (foreign or result.coverage.fault_share is not None):
        lines.append(Text(f"read: {result.coverage}"))
    if result.read is not None and (foreign or result.read.requests is not None):
        lines.append(Text(f"bytes read: {read_text(result.read)}"))
    differs = any(check.result == "differs" for check in result.checks)
    return [*lines, *(printed([checks_view(result.checks)]) if foreign or differs else ())]


def _gates(result: TraceResult) -> list[RenderableType]:
    return [
        _layer(result, layer, stream)
        for layer in result.layers
        for stream in range(len(layer.gates[0]))
    ]


def _layer(result: TraceResult, layer: LayerTrace, stream: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    gates = [row[stream] for row in layer.gates]
    low, high = min(gates), max(gates)
    name = layer.name + (f", stream {stream}" if len(layer.gates[0]) > 1 else "")
    mean = sum(gates) / len(gates)
    head = Text(f"{name}: gates {low:.3f} to {high:.3f}, mean {mean:.3f}", style="bold")
    body = Text()
    for piece, gate in zip(result.pieces, gates, strict=True):
        place = 0.0 if high <= low else (gate - low) / (high - low)
        body.append(_shown(piece), style=_SHADES[round(place * (len(_SHADES) - 1))])
    table = Table(box=None, pad_edge=False)
    table.add_column("widest open")
    table.add_column("gate", justify="right")
    table.add_column("added", justify="right")
    order = sorted(range(len(gates)), key=lambda i: (-gates[i], i))
    for i in order[:5]:
        table.add_row(Text(_shown(result.pieces[i])), f"{gates[i]:.3f}", _added(layer.strengths[i]))
    return Group(head, body, table, Text())


def _added(strength: float) -> str:
    """Return what was added, in percent of the hidden state; a little is not shown as nothing."""
    return "< 0.1%" if 0.0 < strength < 5e-4 else f"{strength:.1%}"


def _shown(piece: str) -> str:
    """Return a token without characters that would control the terminal."""
    plain = "".join(sign if sign.isprintable() else "↵" if sign == "\n" else "·" for sign in piece)
    return plain or "·"


def _demo(result: DemoResult) -> list[RenderableType]:
    from engram_cli.cli.render import count, facts, percent, quantity

    stats, table, vocab = result.stats, result.table.plan, result.vocab
    rate = quantity(stats.tokens_per_second, "tokens")
    size = "" if stats.bytes is None else f", {quantity(stats.bytes, 'bytes')}"
    rows = [
        ("vocabulary", f"{vocab.tokens:,} tokens -> {vocab.compressed_size:,} ids, "
         f"-{percent(vocab.reduction)}"),
        ("corpus", f"{count(stats.files, 'file')} of Python's standard library{size}"),
        ("tokens", f"{stats.tokens:,} read, encoded, hashed and counted at {rate}/s"),
    ]  # fmt: skip
    for order in stats.orders:
        heads = [column for column in stats.columns if column.order == order.order]
        occupied = sum(column.occupied for column in heads) / sum(column.rows for column in heads)
        ideal = sum(column.ideal_occupied for column in heads) / sum(c.rows for c in heads)
        shared = sum(column.shared for column in heads) / len(heads)
        fair = sum(column.ideal_shared for column in heads) / len(heads)
        rows += [
            (f"{order.order}-grams", f"{order.distinct:,.0f} distinct; "
             f"{percent(occupied, 1)} of the rows are used (ideal hash {percent(ideal, 1)})"),
            ("", f"{percent(shared, 1)} of them share their row in a head "
             f"(ideal hash {percent(fair, 1)})"),
        ]  # fmt: skip
    rows += [
        ("table", f"{table.rows:,} rows x {table.dim} {table.dtype}, "
         f"{quantity(table.total_bytes, 'bytes')}; a token reads {table.token_rows} rows, "
         f"{table.token_bytes} bytes"),
        ("model", f"{result.checkpoint_parameters:,} parameters with random weights, "
         f"memory in decoder layer {', '.join(map(str, result.bundle.decoder_layers))} "
         "(counted from 0)"),
    ]  # fmt: skip
    training = result.training
    if training is None:
        rows.append(("attached", "bundle written; with torch and transformers, the demo trains it"))
    else:
        equal = "equal to the bit" if training.logits_equal else "NOT EQUAL"
        steps = len(training.losses) - 1
        rows += [
            ("attached", f"logits with the memory and without: {equal}"),
            ("trained", f"{steps} steps of the memory alone: loss {training.losses[0]:.3f} -> "
             f"{training.losses[-1]:.3f}"),
        ]  # fmt: skip
    rows += [
        ("files", f"{shown_path(result.folder)}/"),
        ("", f"{result.vocab_file.name}, {result.stats.out.name}/, {table.out.name}/, "
         f"{result.bundle.out.relative_to(result.folder)}/"),
        ("report", f"{shown_path(result.report)}: open it in a browser"),
        ("took", f"{result.seconds:.0f} s"),
    ]  # fmt: skip
    return [facts("What the demo found", rows)]
