"""The request of `engram explore`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engram_cli.commands.requests.options import (
    TOKENIZER_FILES,
    WORKSPACE,
    Option,
    Request,
    Vocab,
    revision_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExploreRequest(Request):
    """What to explore, and where the page is served.

    `path` None: the memory of `model`, else the table of the folder, else its statistics. `model`:
    a checkpoint whose gates are shown, None for none; it carries the bundle at `path`, or its own
    where that is no bundle. `port` 0: one that is free.
    """

    path: Annotated[
        Path | None,
        Option(
            "Table, bundle, statistics or checkpoint with tables to explore: a path, org/name of "
            "the Hugging Face Hub, or an address (the table or statistics of the workspace).",
            argument=True,
            reads="ranges",
        ),
    ] = None
    revision: Annotated[str | None, revision_of("path", "the artifact")] = None
    model: Annotated[
        Path | None,
        Option(
            "Checkpoint that carries the bundle at PATH, or its own: also show the gates, and "
            "what the memory changes.",
            metavar="CKPT",
            reads="copy",
        ),
    ] = None
    port: Annotated[int, Option("Port on 127.0.0.1 (0 takes a free one).", least=0, most=65535)] = 0
    browser: Annotated[bool, Option("Open the page in your browser.")] = True
    stats: Annotated[
        Path | None,
        Option("Statistics with hits and n-grams (those next to the artifact).", reads="ranges"),
    ] = None
    tokenizer: Annotated[
        Path | None,
        Option(
            "Tokenizer of the texts (found automatically).", reads="ranges", files=TOKENIZER_FILES
        ),
    ] = None
    vocab: Vocab = None
    folder: Annotated[Path, WORKSPACE] = Path()
