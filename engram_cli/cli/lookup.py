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
        typer.Argument(help="Table, bundle, statistics or vocabulary to use.", show_default=False),
    ],
    text: Annotated[str | None, typer.Argument(help="Text to look up.", show_default=False)] = None,
    ids: Annotated[
        Any, typer.Option("--ids", help="Token ids to look up instead of a text.", **_IDS)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Second text: show which rows both texts use."),
    ] = None,
    against_ids: Annotated[
        Any, typer.Option("--against-ids", help="Second text as token ids.", **_IDS)
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer to look up (the first).")] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens to show per text.")
    ] = 64,
    vectors: Annotated[
        Path | None,
        typer.Option(
            help="Write the vectors as a NumPy file, float32 [tokens, heads x width]: out.npy"
        ),
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(help="Statistics with the n-gram sample (those next to the artifact)."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer of the vocabulary (found automatically).")
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
    """Look up a text: show each token's row per head, its hits, its norm, and what shares it.

    Layout options apply only to a vocabulary: they show which rows a geometry would use.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.cli.lookup_tables import lookup_parts
        from engram_cli.commands.artifact import VOCABULARY, find_artifact
        from engram_cli.commands.lookup import LookupRequest
        from engram_cli.commands.lookup import lookup as run

        bare = find_artifact(path).kind == VOCABULARY
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
