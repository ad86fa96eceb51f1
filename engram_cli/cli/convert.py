"""engram convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.cli.options import (
    DTYPES_HELP,
    ChunkRowsOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    QuietOption,
    ScaleOption,
    ThreadsOption,
)
from engram_cli.cli.terminal import Terminal, reported, shown_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.convert import ConvertResult


def convert(
    table: Annotated[Path, typer.Argument(help="Table to convert.", show_default=False)],
    dtype: Annotated[str, typer.Option(help=DTYPES_HELP, show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Table to write.", show_default=False)],
    scale: ScaleOption = None,
    chunk_rows: ChunkRowsOption = None,
    threads: ThreadsOption = None,
    verify: Annotated[
        bool, typer.Option(help="Verify the checksums of the table before writing anything.")
    ] = True,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert a table's rows to another dtype, or resume an interrupted conversion.

    Row hits and the vocabulary map are copied. At the end the rows are compared with the old ones.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.commands.convert import ConvertRequest, convert_table

        request = ConvertRequest(
            source=table,
            dtype=dtype,
            out=out,
            scale=scale,
            chunk_rows=chunk_rows,
            verify=verify,
            force=force,
            threads=threads,
            dry_run=dry_run,
        )
        result = convert_table(request, terminal)
        terminal.result(result, *_parts(result))


def _parts(result: ConvertResult) -> list[RenderableType]:
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
    lines.append(("took", f"{result.seconds:.1f} s"))
    if result.resumed_chunks:
        lines.append(("resumed", f"{result.resumed_chunks:,} chunks were there"))
    lines.append(("digest", short_digest(result.digest)))
    lines.append(("written", shown_path(plan.out)))
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
