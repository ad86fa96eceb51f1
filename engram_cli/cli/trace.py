"""engram trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.cli.options import ForceOption, JsonOption, QuietOption
from engram_cli.cli.terminal import Terminal, reported, shown_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.trace import LayerTrace, TraceResult

_SHADES = ("grey50", "color(30)", "color(37)", "color(43)", "color(49)", "bold color(51)")


def trace(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a Hugging Face checkpoint.", show_default=False)
    ],
    text: Annotated[str, typer.Argument(help="Text to run the model on.", show_default=False)],
    bundle: Annotated[Path | None, typer.Option(help="Bundle to use (CHECKPOINT/engram).")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's tokenizer (CHECKPOINT/tokenizer.json).")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page to write.", metavar="PAGE")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show where the memory is used: how far the gate opens for each token of a text."""
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.commands.trace import TraceRequest, trace_text

        request = TraceRequest(
            checkpoint=checkpoint,
            text=text,
            bundle=bundle,
            tokenizer=tokenizer,
            report=report,
            force=force,
        )
        result = trace_text(request)
        terminal.result(result, *_parts(result))
        if result.untrained:
            named = ", ".join(own.name for own in result.layers if own.layer in result.untrained)
            terminal.note(
                f"untrained: {named}: nothing is added to any token (the value projection or the "
                "rows are zero), and the gates are as they were drawn"
            )
        if result.report is not None:
            terminal.note(f"written: {shown_path(result.report)}")


def _parts(result: TraceResult) -> list[RenderableType]:
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
        table.add_row(
            Text(_shown(result.pieces[i])), f"{gates[i]:.3f}", f"{layer.strengths[i]:.1%}"
        )
    return Group(head, body, table, Text())


def _shown(piece: str) -> str:
    """Return a token without characters that would control the terminal."""
    plain = "".join(sign if sign.isprintable() else "↵" if sign == "\n" else "·" for sign in piece)
    return plain or "·"
