"""Options that say how a corpus is read, the same for every command that reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_cli.cli.options import unescape

_CORPUS = "Corpus"

FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="text, jsonl, parquet, arrow, npy, nanogpt, llmc, olmo, megatron, datatrove or "
        "mds; by default told from each file.",
        rich_help_panel=_CORPUS,
    ),
]
FieldOption = Annotated[
    str | None,
    typer.Option(
        help="Field of the text (or token ids), dotted where nested (text).",
        rich_help_panel=_CORPUS,
    ),
]
SeparatorOption = Annotated[
    str | None,
    typer.Option(
        "--document-separator",
        help=r"What parts documents inside a text file, such as '\n\n'.",
        rich_help_panel=_CORPUS,
    ),
]
EndIdOption = Annotated[
    int | None,
    typer.Option(
        "--document-end-id",
        min=0,
        help="Token that parts documents in nanogpt, llmc and olmo files.",
        rich_help_panel=_CORPUS,
    ),
]
IdsTypeOption = Annotated[
    str | None,
    typer.Option(
        "--ids-dtype",
        help="uint16, uint32, int32 or int64, for nanogpt and olmo files; by default told.",
        rich_help_panel=_CORPUS,
    ),
]
SuffixesOption = Annotated[
    str | None,
    typer.Option(help="Files of a folder to read: .txt,.md", rich_help_panel=_CORPUS),
]
ErrorsOption = Annotated[
    str,
    typer.Option(help="Bytes that are not UTF-8: strict or replace.", rich_help_panel=_CORPUS),
]
JoinOption = Annotated[
    bool,
    typer.Option(
        "--join-documents",
        help="Let n-grams run across documents.",
        rich_help_panel=_CORPUS,
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        help="The tokenizer the vocabulary was made with; by default found.",
        rich_help_panel=_CORPUS,
    ),
]
EncoderOption = Annotated[
    str, typer.Option(help="auto, tokenizers or fast.", rich_help_panel=_CORPUS)
]


def corpus_choices(context: typer.Context, end_id: int | None = None) -> dict[str, Any]:
    """How a command's corpus is read, as fields of `CorpusOptions`.

    `end_id`: what ends documents where no `--document-end-id` was given.
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
