"""engram attach."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.cli.options import (
    DryRunOption,
    ForceOption,
    JsonOption,
    QuietOption,
    WorkspaceOption,
    parse_integers,
)
from engram_cli.cli.terminal import Terminal, reported, shown_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.attach import AttachResult


def attach(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a Hugging Face checkpoint.", show_default=False)
    ],
    table: Annotated[Path | None, typer.Option(help="Table to attach (engram-table.zarr).")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Bundle folder to write (CHECKPOINT/engram).")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Write the bundle to DIR/engram.", metavar="DIR")
    ] = None,
    layers: Annotated[
        Any,
        typer.Option(
            parser=parse_integers,
            metavar="LAYER,...",
            help="Use only these layers of the table (all).",
        ),
    ] = None,
    at: Annotated[
        Any,
        typer.Option(
            parser=parse_integers,
            metavar="LAYER,...",
            help="Decoder layers that receive them, counted from 0 (the layers with the same "
            "numbers, else the second and the middle one).",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's tokenizer (CHECKPOINT/tokenizer.json).")
    ] = None,
    module: Annotated[
        str | None,
        typer.Option(
            help="Module: engram-v1, deepseek-v4.1 or qwen-ple (the one of the table's scheme)."
        ),
    ] = None,
    init_value: Annotated[
        str,
        typer.Option(
            help="How the value projection starts: zero, random, or auto (random in layers "
            "whose rows are all zero, else zero)."
        ),
    ] = "auto",
    init_gate: Annotated[
        str, typer.Option(help="How the gates start: random, or even (all near one half).")
    ] = "random",
    packed: Annotated[
        bool,
        typer.Option("--packed", help="Keep documents that are packed into one sequence apart."),
    ] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Refer to the table instead of copying its rows.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the module's random weights.")] = 0,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Write a bundle next to a checkpoint: everything a model needs to use the table.

    The memory adds nothing at first: outputs stay bit for bit the same until you train it.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.commands.attach import AttachRequest, attach_checkpoint
        from engram_cli.commands.workspace import Workspace

        request = AttachRequest(
            checkpoint=checkpoint,
            table=table or Workspace(workspace).table,
            out=out,
            into=into,
            layers=layers,
            at=at,
            tokenizer=tokenizer,
            module=module,
            init_value=init_value,
            init_gate=init_gate,
            packed=packed,
            reference=reference,
            seed=seed,
            force=force,
            dry_run=dry_run,
        )
        result = attach_checkpoint(request, terminal)
        terminal.result(result, *_parts(result))
        if result.written:
            terminal.note(f'next, in Python: attach(model, "{shown_path(result.out)}")')


def _parts(result: AttachResult) -> list[RenderableType]:
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
        ("table", _table(result)),
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
    if not result.identity:
        lines.append(("outputs", "change at once: the value projection is random"))
    return [facts("Bundle", lines)]


def _table(result: AttachResult) -> str:
    from engram_cli.cli.render import quantity

    size = quantity(result.cost.table_bytes, "bytes")
    if result.reference is None:
        return size
    return f"{size} that stay in {result.reference}"
