"""engram plan, build-table, convert and attach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, follow, shown_path
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.plan import PlanRequest
from engram_cli.commands.requests.tables import AttachRequest, BuildTableRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.numbers import seconds_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.attach.command import AttachResult
    from engram_cli.commands.build_table import BuildTableResult
    from engram_cli.commands.convert.command import ConvertResult
    from engram_cli.commands.convert.to import WriteResult
    from engram_cli.commands.init_corpus import FillPlan


@command(PlanRequest)
def plan(request: PlanRequest, terminal: Terminal) -> None:
    """Size a table: rows and heads for a budget, expected use, where it fits and how fast it is.

    Uses the statistics in the folder, if there are any. Writes nothing except --out.
    """
    from engram_cli.cli.plan_tables import plan_parts
    from engram_cli.commands.plan.command import plan as run

    result = run(request, terminal)
    following = None
    if request.out is not None:
        command = f"engram build-table --plan {request.out}"
        following = follow(command, request.workspace.folder)
    terminal.result(result, *plan_parts(result), next_command=following)


@command(BuildTableRequest)
def build_table(request: BuildTableRequest, terminal: Terminal) -> None:
    """Build a table of vectors as a Zarr store, or resume an interrupted build.

    The geometry comes from the statistics in the folder, if there are any. Options override it.
    """
    from engram_cli.commands.build_table import build_table as run
    from engram_cli.commands.checkpoint import find_checkpoints

    result = run(request, terminal)
    following = None
    if result.written:
        assert request.folder is not None
        found = find_checkpoints(request.folder)
        name = f"{found[0].folder}/" if len(found) == 1 else "ckpt/"
        out = None if request.out == Workspace(request.folder).table else request.out
        following = follow(f"engram attach {name}", request.folder, table=out)
    terminal.result(result, *table_parts(result), next_command=following)


@command(ConvertRequest)
def convert(request: ConvertRequest, terminal: Terminal) -> None:
    """Convert rows to another dtype, or a table, bundle or checkpoint to another format with --to.

    Items and scales are copied as they are stored, unless --dtype asks for others. At the end the
    rows are read again and compared. The same command resumes an interrupted conversion. A GGUF
    file to GGUF keeps its tensors: keys that it lacks are computed from its layout, and named.
    """
    from engram_cli.commands.convert.to import WriteResult
    from engram_cli.commands.convert.to import convert as run

    result = run(request, terminal)
    if not isinstance(result, WriteResult):
        terminal.result(result, *_conversion(result))
        return
    terminal.result(result, *_written(result))
    for note in result.notes:
        terminal.note(note)
    if request.check and result.is_change:
        raise typer.Exit(1)


@command(AttachRequest)
def attach(request: AttachRequest, terminal: Terminal) -> None:
    """Write a bundle next to a checkpoint: everything a model needs to use the table.

    The memory adds nothing at first: outputs stay bit for bit the same until you train it.
    """
    from engram_cli.commands.attach.command import attach_checkpoint

    result = attach_checkpoint(request, terminal)
    terminal.result(result, *_bundle(result))
    if result.written:
        bundle, model = shown_path(result.out), shown_path(request.checkpoint)
        terminal.note(f'next, in Python: attach(model, "{bundle}")')
        terminal.note(f"or train it: engram train {model} TEXT --held-out TEXT --bundle {bundle}")


def table_parts(result: BuildTableResult) -> list[RenderableType]:
    """Return the printed parts: sizes, and where the table is."""
    from engram_cli.cli.render import facts, grid, quantity, short_digest

    plan = result.plan
    hits = "none" if plan.tokens is None else f"of {plan.tokens:,} tokens, stored with the rows"
    orders = ", ".join(map(str, plan.orders))
    lines = [
        ("scheme", f"{plan.scheme}, orders {orders}, {plan.heads} heads"),
        ("rows", f"{plan.rows:,} of {plan.dim} x {plan.dtype}, init {plan.init}"),
        ("row hits", hits),
        ("on disk", f"{quantity(plan.total_bytes, 'bytes')} ({plan.total_bytes:,} bytes)"),
        ("a token reads", f"{plan.token_rows:,} rows, {plan.token_bytes:,} bytes"),
    ]
    if plan.sums_bytes:
        lines.insert(4, ("kept sums", f"{quantity(plan.sums_bytes, 'bytes')} of that"))
    if plan.fill is not None:
        lines.insert(3, ("filled from", _filled(plan.fill)))
    if result.written:
        pace = quantity((plan.total_bytes - plan.done_bytes) / max(result.seconds, 1e-9), "bytes")
        lines.append(("took", f"{seconds_text(result.seconds)}, {pace}/s"))
        if result.resumed_chunks:
            lines.append(("resumed", f"{result.resumed_chunks:,} chunks were already written"))
        lines.append(("digest", short_digest(result.digest)))
        lines.append(("written", shown_path(plan.out)))
    else:
        free = quantity(plan.free_bytes, "bytes")
        lines.append(("fits", f"{'yes' if plan.fits else 'no'}: {free} free on the disk"))
        lines.append(("would write", shown_path(plan.out)))
        if result.in_the_way is not None:
            lines.append(("in the way", result.in_the_way))
    rows = [
        (
            f"{layer.layer}",
            f"{layer.rows:,}",
            f"{layer.row_bytes}",
            f"{layer.chunks:,}",
            quantity(layer.chunk_bytes, "bytes"),
            quantity(layer.hits_bytes, "bytes"),
            quantity(layer.total_bytes, "bytes"),
        )
        for layer in plan.layers
    ]
    names = (">layer", ">rows", ">bytes per row", ">chunks", ">chunk size", ">hits", ">total")
    return [facts("Table", lines), grid("Layers", names, rows)]


def _filled(fill: FillPlan) -> str:
    about = "about " if fill.guessed else ""
    within = f"{fill.memory_bytes:,} bytes"
    return f"{about}{fill.tokens:,} tokens, in {fill.some_passes} within {within}"


def _conversion(result: ConvertResult) -> list[RenderableType]:
    """Return the printed parts: sizes, and how much the rows changed."""
    from engram_cli.cli.render import facts, grid, quantity, short_digest

    plan = result.plan
    rows = sum(layer.rows for layer in plan.layers)
    lines = [
        ("rows", f"{rows:,} of {plan.dim} x {plan.source_dtype}, now {plan.dtype}"),
        ("bytes a row", f"{plan.source_row_bytes:,}, now {plan.layers[0].row_bytes:,}"),
        ("on disk", f"{quantity(plan.source_bytes, 'bytes')}, now "
         f"{quantity(plan.total_bytes, 'bytes')} ({plan.total_bytes:,} bytes)"),
    ]  # fmt: skip
    if not result.written:
        free = quantity(plan.free_bytes, "bytes")
        lines.append(("fits", f"{'yes' if plan.fits else 'no'}: {free} are free on the disk"))
        lines.append(("would write", shown_path(plan.out)))
        if result.in_the_way is not None:
            lines.append(("in the way", result.in_the_way))
        return [facts("Conversion", lines)]
    lines.append(("took", seconds_text(result.seconds)))
    if result.resumed_chunks:
        lines.append(("resumed", f"{result.resumed_chunks:,} chunks were there"))
    lines.append(("digest", short_digest(result.digest)))
    lines.append(("written", shown_path(plan.out)))
    if result.copied:
        lines.append(("rows", "copied as they are stored, read again and equal"))
    if not result.differences:
        return [facts("Conversion", lines)]
    errors = [
        (
            f"{layer.layer}",
            f"{layer.rmse:.3g}",
            f"{100 * layer.relative:.3f} %",
            f"{layer.cosine:.7f}",
            "none" if layer.worst_row < 0 else f"{layer.worst_row:,}",
            f"{100 * layer.worst_relative:.3f} %",
            f"{layer.skipped:,}",
        )
        for layer in result.differences
    ]
    names = (">layer", ">RMSE", ">of the RMS", ">cosine", ">worst row", ">off by", ">not finite")
    return [facts("Conversion", lines), grid("Error", names, errors)]


def _written(result: WriteResult) -> list[RenderableType]:
    """Return the printed parts: what was written, and each key of a header."""
    from engram_cli.cli.render import facts, grid, quantity

    dialect = "" if result.dialect is None else f", dialect {result.dialect}"
    lines = [
        ("source", f"{shown_path(result.source)}, {result.source_format}"),
        ("format", f"{result.to}{dialect}"),
        ("size", f"{quantity(result.size, 'bytes')} ({result.size:,} bytes)"),
    ]
    if result.source_dtype != result.dtype:
        lines.insert(2, ("rows", f"{result.source_dtype}, now {result.dtype}"))
    if result.changes:
        count = sum(change.is_change for change in result.changes)
        lines.append(("header", f"{count} of {len(result.changes)} entries change"))
    if result.written:
        equal = "source" if result.source_dtype == result.dtype else "encoded source"
        verified = f"read again, equal to the {equal}" if result.verified else "not read again"
        lines += [("verified", verified), ("took", seconds_text(result.seconds))]
    if result.out is not None:
        lines.append(("written" if result.written else "would write", shown_path(result.out)))
    parts: list[RenderableType] = [facts("Conversion", lines)]
    if result.changes:
        rows = [(change.name, change.action, change.value) for change in result.changes]
        parts.append(grid("Header", ("name", "what", "value"), rows))
    return parts


def _bundle(result: AttachResult) -> list[RenderableType]:
    from engram_cli.cli.render import facts, quantity

    cost = result.cost
    rows = " + ".join(f"{rows:,}" for rows in result.rows.values())
    lines = [
        ("model", f"{result.model.model_type}, {result.model.num_layers} layers of width "
         f"{result.model.hidden_size:,}"),
        ("scheme", result.scheme),
        ("layers", f"{', '.join(map(str, result.layers))} of the table: {result.why}"),
        ("decoder layers", f"{', '.join(map(str, result.decoder_layers))}, counted from 0"),
        ("rows", f"{rows}, {result.dim} x {result.dtype} each"),
        ("table", _table_size(result)),
        ("module", f"{result.module}: {cost.dense_parameters:,} parameters, "
         f"{quantity(cost.dense_bytes, 'bytes')}"),
        ("a token reads", f"{cost.token_rows:,} rows, {cost.token_bytes:,} bytes"),
        ("written" if result.written else "would write",
         f"{shown_path(result.out)}, {quantity(cost.disk_bytes, 'bytes')}"),
    ]  # fmt: skip
    if not result.written:
        free = quantity(result.free_bytes, "bytes")
        lines.append(("fits", f"{'yes' if result.fits else 'no'}: {free} free on the disk"))
        if result.in_the_way is not None:
            lines.append(("in the way", result.in_the_way))
    if result.zero_rows:
        named = ", ".join(map(str, result.zero_rows))
        lines.append(("zero rows", f"table layers {named}: no output changes before training"))
    fitted = result.fit
    if fitted is not None:
        lines.append(
            ("fitted", f"decoder layer {fitted.decoder_layer}: {fitted.before:.3f} -> "
             f"{fitted.after:.3f} nats per token, after {fitted.tokens:,} tokens"),
        )  # fmt: skip
    elif not result.identity:
        why = "weights are the checkpoint's" if result.trained else "value projection is random"
        lines.append(("outputs", f"change at once: the {why}"))
    return [facts("Bundle", lines)]


def _table_size(result: AttachResult) -> str:
    from engram_cli.cli.render import quantity

    size = quantity(result.cost.table_bytes, "bytes")
    if result.reference is None:
        return size
    return f"{size} that stay in {result.reference}"
