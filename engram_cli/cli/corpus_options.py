"""Options for reading a corpus, shared by every command that reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_cli.cli.options import unescape
from engram_cli.corpus.readers import READERS

_CORPUS = "Corpus"

FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"File format: {READERS.choices()} (detected for each file).",
        rich_help_panel=_CORPUS,
    ),
]
FieldOption = Annotated[
    str | None,
    typer.Option(
        help="Field that holds the text or token ids; use dots for nested fields (text).",
        rich_help_panel=_CORPUS,
    ),
]
SeparatorOption = Annotated[
    str | None,
    typer.Option(
        "--document-separator",
        help=r"Separator between documents in a text file, such as '\n\n'.",
        rich_help_panel=_CORPUS,
    ),
]
EndIdOption = Annotated[
    int | None,
    typer.Option(
        "--document-end-id",
        min=0,
        help="Token id between documents in nanogpt, llmc and olmo files.",
        rich_help_panel=_CORPUS,
    ),
]
IdsTypeOption = Annotated[
    str | None,
    typer.Option(
        "--ids-dtype",
        help="Type of the ids in nanogpt and olmo files: uint16, uint32, int32 or int64 "
        "(detected).",
        rich_help_panel=_CORPUS,
    ),
]
SuffixesOption = Annotated[
    str | None,
    typer.Option(
        help="Read only the files of a folder that have these suffixes: .txt,.md",
        rich_help_panel=_CORPUS,
    ),
]
ErrorsOption = Annotated[
    str,
    typer.Option(
        help="What to do with bytes that are not UTF-8: strict (stop) or replace (read U+FFFD).",
        rich_help_panel=_CORPUS,
    ),
]
JoinOption = Annotated[
    bool,
    typer.Option(
        "--join-documents",
        help="Let n-grams cross document boundaries.",
        rich_help_panel=_CORPUS,
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        help="Tokenizer that the vocabulary was made from (found automatically).",
        rich_help_panel=_CORPUS,
    ),
]
EncoderOption = Annotated[
    str,
    typer.Option(
        help="Tokenizer implementation: auto, tokenizers or fast.", rich_help_panel=_CORPUS
    ),
]


def corpus_choices(context: typer.Context, end_id: int | None = None) -> dict[str, Any]:
    """Return a command's corpus options as fields of `CorpusOptions`.

    `end_id`: the token that ends documents when `--document-end-id` is not given.
    """
    given = context.params
    chosen, suffixes = given["document_end_id"], given["suffixes"]
    return {
        "format": given["format_"],
        "field": given["field"],
        "document_separator": unescape(given["document_separator"]),
        "document_end_id": end_id if chosen is None else chosen,
        "ids_dtype": given["ids_dtype"],
        "suffixes": None if suffixes is None else tuple(suffixes.split(",")),
        "errors": given["errors"],
    }
