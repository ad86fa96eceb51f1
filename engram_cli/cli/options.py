"""Options that several commands share, and the functions that parse their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from engram_cli.cli.configured import load_config
from engram_cli.hashing.schemes import SCHEMES
from engram_cli.rows import DTYPES
from engram_cli.sizes import read_size

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "0": "\0", "f": "\f"}


def parse_size(text: str) -> int:
    """Parse a count or a number of bytes: 646400, 16M, 5GB, 64MiB."""
    try:
        return read_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def parse_sizes(text: str) -> tuple[int, ...]:
    """Parse comma-separated sizes: 646400 or 16M,16M,8M."""
    return tuple(parse_size(part) for part in text.split(","))


def parse_integers(text: str) -> tuple[int, ...]:
    """Parse comma-separated integers: 2,3."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a list such as 2,3") from None


def unescape(text: str | None) -> str | None:
    r"""Replace the escapes \n, \t, \\ and \x1e, which a shell passes as written."""
    if text is None:
        return None
    return re.sub(r"\\(x[0-9A-Fa-f]{2}|.)", _meaning, text)


def _meaning(escape: re.Match[str]) -> str:
    name = escape[1]
    return chr(int(name[1:], 16)) if len(name) == 3 else _ESCAPES.get(name, escape[0])


WorkspaceOption = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-w",
        help="Folder that holds the artifacts and engram.toml.",
        is_eager=True,
        callback=load_config,
        file_okay=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to stdout and nothing else.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace an output that engram wrote before.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the sizes in bytes and write nothing.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Number of threads (one per core).")]
ChunkRowsOption = Annotated[
    int | None, typer.Option(min=1, help="Rows per chunk file (about 128 MiB).")
]
VocabOption = Annotated[
    Path | None,
    typer.Option("--vocab", help="Compressed vocabulary (the one in the workspace)."),
]
_NAMES = list(DTYPES)
DTYPES_HELP = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}."
ScaleOption = Annotated[
    float | None,
    typer.Option(help="Scale of every layer, for dtype fp8 (computed from the rows)."),
]
_LAYOUT = "Layout"
ENGINE_PANEL = "Engine"
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to use (one running on this machine, else a new one).",
        metavar="ADDRESS",
        rich_help_panel=ENGINE_PANEL,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        help="Start from a published geometry: engram-v1-demo, deepseek-v4.1, qwen-ple or "
        "engram-27b. Other options override it.",
        rich_help_panel=_LAYOUT,
    ),
]
SchemeOption = Annotated[
    str | None,
    typer.Option(
        help=f"Hashing scheme: {SCHEMES.choices()} (engram-v1).",
        rich_help_panel=_LAYOUT,
    ),
]
OrdersOption = Annotated[
    Any,
    typer.Option(
        parser=parse_integers,
        metavar="N,...",
        help="N-gram lengths, such as 2,3.",
        rich_help_panel=_LAYOUT,
    ),
]
HeadsOption = Annotated[
    int | None, typer.Option(help="Number of hash heads per order.", rich_help_panel=_LAYOUT)
]
RowsOption = Annotated[
    Any,
    typer.Option(
        "--rows-per-head",
        parser=parse_sizes,
        metavar="SIZE,...",
        help="Minimum rows per head, one size or one per order: 646400, 16M.",
        rich_help_panel=_LAYOUT,
    ),
]
LayersOption = Annotated[
    Any,
    typer.Option(
        parser=parse_integers,
        metavar="LAYER,...",
        help="Layers that get a table (1,15, or layers that suit the checkpoint in the folder).",
        rich_help_panel=_LAYOUT,
    ),
]
PadIdOption = Annotated[
    int | None,
    typer.Option(
        help="Token id that fills positions before the start (the tokenizer's pad token).",
        rich_help_panel=_LAYOUT,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed of the hash multipliers.", rich_help_panel=_LAYOUT)
]
VocabSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Number of token ids, for schemes that hash raw ids.", rich_help_panel=_LAYOUT
    ),
]
EosIdOption = Annotated[
    int | None,
    typer.Option(
        help="EOS token id, for schemes whose n-grams stop at it.", rich_help_panel=_LAYOUT
    ),
]
