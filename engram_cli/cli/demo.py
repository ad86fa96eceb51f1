"""engram demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.cli.options import JsonOption, QuietOption
from engram_cli.cli.terminal import Terminal, reported, shown_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.demo import DemoResult


def demo(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder for the demo's files. A folder of an earlier demo is replaced."
        ),
    ] = Path("engram-demo"),
    train: Annotated[
        bool,
        typer.Option(
            "--train/--no-train", help="Train the memory for ten steps (needs transformers)."
        ),
    ] = True,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run every step on real input: tokenizer, corpus, table, and a small model that uses it."""
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.commands.demo import DemoRequest, run_demo

        result = run_demo(DemoRequest(folder=folder, train=train), terminal)
        terminal.result(result, *_parts(result))


def _parts(result: DemoResult) -> list[RenderableType]:
    from engram_cli.cli.render import facts, percent, quantity

    stats, table, vocab = result.stats, result.table.plan, result.vocab
    rate = quantity(stats.tokens_per_second, "tokens")
    size = "" if stats.bytes is None else f", {quantity(stats.bytes, 'bytes')}"
    rows = [
        ("vocabulary", f"{vocab.tokens:,} tokens -> {vocab.compressed_size:,} ids, "
         f"-{percent(vocab.reduction)}"),
        ("corpus", f"{stats.files:,} files of Python's standard library{size}"),
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
        ("took", f"{result.seconds:.0f} s"),
    ]  # fmt: skip
    return [facts("What the demo found", rows)]
