"""engram lookup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_cli.cli.configured import LAYOUT_NAMES, layout_choices
from engram_cli.cli.options import (
    EosIdOption,
    ForceOption,
    HeadsOption,
    JsonOption,
    LayersOption,
    OrdersOption,
    PadIdOption,
    QuietOption,
    RowsOption,
    SchemeOption,
    SeedOption,
    VocabOption,
    VocabSizeOption,
    WorkspaceOption,
    parse_integers,
)
from engram_cli.cli.terminal import Terminal, reported

_IDS: dict[str, Any] = {"parser": parse_integers, "metavar": "ID,..."}


def lookup(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(help="Table, bundle, statistics or vocabulary.", show_default=False),
    ],
    text: Annotated[str | None, typer.Argument(help="Text to look up.", show_default=False)] = None,
    ids: Annotated[
        Any, typer.Option("--ids", help="Token ids in the place of a text.", **_IDS)
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A second text: which rows do they share?")
    ] = None,
    against_ids: Annotated[
        Any, typer.Option("--against-ids", help="The second text as token ids.", **_IDS)
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer (the first one).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Tokens of a text that are told of.")] = 64,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Write the looked-up vectors, float32 [tokens, heads x width]: out.npy"),
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(help="Statistics with the sample of n-grams; by default those beside."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The tokenizer of the vocabulary; by default found.")
    ] = None,
    vocab: VocabOption = None,
    scheme: SchemeOption = None,
    orders: OrdersOption = None,
    heads: HeadsOption = None,
    rows_per_head: RowsOption = None,
    layers: LayersOption = None,
    pad_id: PadIdOption = None,
    seed: SeedOption = None,
    vocab_size: VocabSizeOption = None,
    eos_id: EosIdOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Look a text up: for each token and head the row, its hits, its norm, and who else is there.

    The layout options are for a bare vocabulary, to see where a geometry would look.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.cli.lookup_tables import lookup_parts
        from engram_cli.commands.artifact import Kind, find_artifact
        from engram_cli.commands.lookup import LookupRequest
        from engram_cli.commands.lookup import lookup as run

        bare = find_artifact(path).kind is Kind.VOCABULARY
        request = LookupRequest(
            path=path,
            text=text,
            ids=ids,
            against=against,
            against_ids=against_ids,
            layer=layer,
            limit=limit,
            vectors=vectors,
            force=force,
            stats=stats,
            vocab=vocab,
            tokenizer=tokenizer,
            geometry=layout_choices(context, only_flags=() if bare else LAYOUT_NAMES),
            folder=workspace,
        )
        result = run(request, terminal)
        terminal.result(result, *lookup_parts(result))
