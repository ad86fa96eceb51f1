"""engram build-table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.cli.options import (
    DTYPES_HELP,
    EosIdOption,
    ForceOption,
    HeadsOption,
    JsonOption,
    LayersOption,
    OrdersOption,
    PadIdOption,
    QuietOption,
    RowsOption,
    ScaleOption,
    SchemeOption,
    SeedOption,
    VocabOption,
    VocabSizeOption,
    WorkspaceOption,
)
from engram_cli.cli.terminal import Terminal, follow, reported, shown_path
from engram_cli.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.build_table import BuildTableResult


def build_table(
    scheme: SchemeOption = None,
    orders: OrdersOption = None,
    heads: HeadsOption = None,
    rows_per_head: RowsOption = None,
    layers: LayersOption = None,
    pad_id: PadIdOption = None,
    seed: SeedOption = None,
    vocab_size: VocabSizeOption = None,
    eos_id: EosIdOption = None,
    dim: Annotated[int, typer.Option(min=1, help="Values a row, the width of one head.")] = 64,
    dtype: Annotated[str, typer.Option(help=DTYPES_HELP)] = "bfloat16",
    init: Annotated[str, typer.Option(help="normal or zeros.")] = "normal",
    std: Annotated[
        float | None, typer.Option(help="Standard deviation of --init normal (0.02).")
    ] = None,
    init_seed: Annotated[int | None, typer.Option(min=0, help="Seed of --init normal.")] = None,
    chunk_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows a chunk file (about 128 MiB).")
    ] = None,
    scale: ScaleOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (one a core).")] = None,
    stats: Annotated[
        Path | None,
        typer.Option(help="Statistics whose geometry and row hits are taken (engram-stats)."),
    ] = None,
    vocab: VocabOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Store to write (engram-table.zarr).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the byte arithmetic and stop.")
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Build a table of vectors as a Zarr store, or go on with a build that was interrupted.

    The geometry is that of the statistics in the folder, where there are any; flags win.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.commands.build_table import BuildTableRequest
        from engram_cli.commands.build_table import build_table as run
        from engram_cli.commands.geometry import Geometry
        from engram_cli.commands.workspace import Workspace

        here = Workspace(workspace)
        if stats is not None and not stats.exists():
            raise InputError(f"statistics not found: {stats}", "run: engram hash-stats CORPUS")
        if vocab is not None and not vocab.exists():
            raise InputError(f"vocabulary not found: {vocab}", "run: engram compress-vocab")
        request = BuildTableRequest(
            geometry=Geometry(
                scheme=scheme,
                orders=orders,
                heads=heads,
                rows_per_head=rows_per_head,
                layers=layers,
                pad_id=pad_id,
                seed=seed,
                vocab_size=vocab_size,
                eos_id=eos_id,
            ),
            vocab=vocab or here.vocab,
            stats=stats or here.stats,
            out=out or here.table,
            force=force,
            dim=dim,
            dtype=dtype,
            init=init,
            std=std,
            init_seed=init_seed,
            chunk_rows=chunk_rows,
            scale=scale,
            threads=threads,
            dry_run=dry_run,
        )
        result = run(request, terminal)
        following = follow("engram attach ckpt/", workspace) if result.written else None
        terminal.result(result, *table_parts(result), next_command=following)


def table_parts(result: BuildTableResult) -> list[RenderableType]:
    """The arithmetic and where the table is, for people."""
    from engram_cli.cli.render import facts, grid, quantity, short_digest

    plan = result.plan
    hits = "none" if plan.tokens is None else f"of {plan.tokens:,} tokens, beside the rows"
    orders = ", ".join(map(str, plan.orders))
    lines = [
        ("scheme", f"{plan.scheme}, orders {orders}, {plan.heads} heads"),
        ("rows", f"{plan.rows:,} of {plan.dim} x {plan.dtype}, init {plan.init}"),
        ("row hits", hits),
        ("on disk", f"{quantity(plan.total_bytes, 'bytes')} ({plan.total_bytes:,} bytes)"),
        ("a token reads", f"{plan.token_rows:,} rows, {plan.token_bytes:,} bytes"),
    ]
    if result.written:
        pace = quantity((plan.total_bytes - plan.done_bytes) / max(result.seconds, 1e-9), "bytes")
        lines.append(("took", f"{result.seconds:.1f} s, {pace}/s"))
        if result.resumed_chunks:
            lines.append(("resumed", f"{result.resumed_chunks:,} chunks were there"))
        lines.append(("digest", short_digest(result.digest)))
        lines.append(("written", shown_path(plan.out)))
    else:
        free = quantity(plan.free_bytes, "bytes")
        lines.append(("fits", f"{'yes' if plan.fits else 'no'}: {free} are free on the disk"))
        lines.append(("would write", shown_path(plan.out)))
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
    names = (">layer", ">rows", ">bytes a row", ">chunks", ">of", ">hits", ">together")
    return [facts("Table", lines), grid("Layers", names, rows)]
