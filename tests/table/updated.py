"""Tables that keep sums, filled from documents, and updates of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from table.filled import fill, fill_spec, random_vectors

from engram_cli.corpus.base import TokenBlock
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import remove_work
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.tokens import TokenFile, TokenWriter, piece_of
from engram_cli.table.journal import SCRATCH
from engram_cli.table.places import partial_folder
from engram_cli.table.sums.change import DocumentChange
from engram_cli.table.sums.opened import already_done, open_for_update
from engram_cli.table.sums.update import TableUpdate

Documents = Sequence[NDArray[np.int32]]


def documents(vocab_size: int, count: int, seed: int) -> list[NDArray[np.int32]]:
    """Zipf-like documents of 1 to 60 tokens, some of which are there twice."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 60, count)
    made = [(vocab_size ** generator.random(n)).astype(np.int32) - 1 for n in sizes]
    return [*made, *made[: count // 5]]


def token_file(folder: Path, layout: HashLayout, texts: Documents) -> TokenFile:
    """Write the documents as a token file."""
    remove_work(folder, SCRATCH)

    def block(ids: NDArray[np.int32]) -> TokenBlock:
        starts = np.zeros(len(ids), dtype=bool)
        starts[0] = True
        return TokenBlock(ids=ids, starts=starts, size=len(ids), locate=str)

    pieces = (piece_of(block(ids), layout) for ids in texts)
    return TokenWriter(folder, None).write(pieces, None)


def built(
    out: Path, layout: HashLayout, texts: Documents, *, sums: bool = True, **given: Any
) -> str:
    """Build a table at `out` from the documents; its digest."""
    vectors = given.pop("vectors", None) or random_vectors(layout)
    centre, name = given.pop("centre", "corpus"), given.pop("name", "next-token")
    file = token_file(out.with_name(f"{out.name}.tokens"), layout, texts)
    spec = fill_spec(layout, file, vectors, name, **given)
    object.__setattr__(spec.init, "centre", centre)
    object.__setattr__(spec.init, "sums", partial_folder(out) if sums else None)
    return fill(out, spec).digest


def prepared(
    path: Path, added: Documents, removed: Documents, vectors: Embeddings | None = None, **how: Any
) -> TableUpdate:
    """An update of the table at `path`."""
    table = open_for_update(path)
    folders = tuple(path.with_name(f"{path.name}.{name}") for name in ("added", "removed"))
    files = [
        token_file(folder, table.layout, texts) if len(texts) else None
        for folder, texts in zip(folders, (added, removed), strict=True)
    ]
    change = DocumentChange(added=files[0], removed=files[1], folders=(folders[0], folders[1]))
    if already_done(table, change):
        table.journal.clear()
        raise StopIteration
    return TableUpdate(table, change, vectors or random_vectors(table.layout), **how)


def updated(path: Path, added: Documents, removed: Documents, **how: Any) -> str:
    """Update the table at `path` in place; its digest."""
    work = prepared(path, added, removed, **how)
    if work.table.interrupted is None:
        work.check()
    return work.apply()


def content(path: Path) -> dict[str, bytes]:
    """Every file of a table, by its path in it."""
    return {
        each.relative_to(path).as_posix(): each.read_bytes()
        for each in sorted(path.rglob("*"))
        if each.is_file()
    }
