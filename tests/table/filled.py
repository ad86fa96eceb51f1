"""Small corpora of token ids, embeddings, and tables filled from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import TokenBlock
from engram_cli.hashing.layout import HashLayout
from engram_cli.table.build import BuildReport, build_store
from engram_cli.table.inits import make_init
from engram_cli.table.inits.corpus.embeddings import Embeddings, MatrixEmbeddings, RandomEmbeddings
from engram_cli.table.inits.corpus.tokens import TokenFile, TokenWriter, piece_of
from engram_cli.table.spec import TableSpec

DIM = 6
HIDDEN = 24


def corpus(vocab_size: int, tokens: int = 3000) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Zipf-like ids with repeated phrases, in documents of about 50 tokens, one of them of one."""
    generator = np.random.default_rng(vocab_size)
    ids = (vocab_size ** generator.random(tokens)).astype(np.int32) - 1
    ids[tokens // 2 : tokens // 2 + tokens // 4] = ids[: tokens // 4]
    starts = generator.random(tokens) < 0.02
    starts[[0, 7, 8]] = True
    return ids, starts


def write_corpus(
    folder: Path, layout: HashLayout, tokens: int = 3000, block: int = 700
) -> TokenFile:
    """The token file of such a corpus."""
    ids, starts = corpus(layout.vocab_size, tokens)
    blocks = (
        TokenBlock(ids=ids[b : b + block], starts=starts[b : b + block], size=1, locate=str)
        for b in range(0, tokens, block)
    )
    return TokenWriter(folder, "request").write((piece_of(block, layout) for block in blocks), None)


def random_vectors(layout: HashLayout) -> RandomEmbeddings:
    """Drawn from a seed."""
    return RandomEmbeddings(tokens=layout.vocab_size, seed=5)


def matrix_vectors(layout: HashLayout) -> MatrixEmbeddings:
    """A matrix that is seen through projections."""
    shape = (layout.vocab_size, HIDDEN)
    matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return MatrixEmbeddings(
        tokens=len(matrix),
        hidden=HIDDEN,
        read=lambda begin, end: matrix[begin:end],
        name="lm_head.weight",
        digest="0123456789abcdef",
        seed=3,
    )


def fill_spec(
    layout: HashLayout, file: TokenFile, vectors: Embeddings, name: str = "next-token", **given: Any
) -> TableSpec:
    """A table that is filled from `file`, in chunks of 32 rows."""
    options = {key: given.pop(key) for key in ("joined", "memory", "threads") if key in given}
    init = make_init(name, layout=layout, file=file, embeddings=vectors, **options)
    return TableSpec(
        layout=layout, init=init, **{"dim": DIM, "dtype": "float32", "chunk_rows": 32} | given
    )


def fill(out: Path, spec: TableSpec, **how: Any) -> BuildReport:
    """Build it."""
    return build_store(spec, out, **how)
