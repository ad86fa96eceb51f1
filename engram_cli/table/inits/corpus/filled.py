"""token-mean and next-token: fill the rows of n-grams from a corpus.

In: a token file, a layout, embeddings. Out: rows, made by passes over ranges of them so that
memory is bounded. The passes change no row: all sums are of integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError, MismatchError
from engram_cli.files import output_errors, sha256_bytes
from engram_cli.hashing.hasher import plan_layer
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.jit import TOKEN_BITS
from engram_cli.progress import SILENT, Progress
from engram_cli.table.grid import PROJECTION_TYPE, ChunkedArray, chunked, projection_array
from engram_cli.table.inits.base import Filler, Span
from engram_cli.table.inits.corpus import kernels
from engram_cli.table.inits.corpus.buckets import (
    BufferPool,
    ColumnPart,
    ColumnVectors,
    PartitionedColumns,
    deal_out,
    map_pairs,
)
from engram_cli.table.inits.corpus.embeddings import Embeddings, MatrixEmbeddings
from engram_cli.table.inits.corpus.memory_plan import MemoryPlan, columns_of, fixed_bytes
from engram_cli.table.inits.corpus.pairs import TokenPairs, check_fold, write_pairs
from engram_cli.table.inits.corpus.tokens import TokenFile
from engram_cli.table.kept_sums import ColumnState, KeptSums, documents_array, map_sums, sums_array

CENTRES = ("corpus", "vocabulary")
LEAST_MEMORY = 64 * 2**20


@dataclass(slots=True)
class Kept:
    """What one pass leaves to the next: memory, and how often each token follows another one.

    `columns`: the vectors of each column in numbers, by layer and column, where sums are kept.
    """

    buffer_pool: BufferPool = field(default_factory=BufferPool)
    followed: NDArray[np.int64] | None = None
    columns: dict[tuple[int, int], ColumnState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFill:
    """Rows from the corpus in `file`, made within about `memory` bytes.

    `joined`: n-grams run across documents. `centre`: whose mean next-token subtracts: that of the
    corpus, or of all tokens of the vocabulary, each once. `sums`: the folder of the table in which
    the sums of all rows are kept, None to keep none. `memory`, `threads`, `progress` and `sums`
    change no row.
    """

    name: str
    layout: HashLayout
    file: TokenFile
    embeddings: Embeddings
    joined: bool = False
    centre: str = "corpus"
    sums: Path | None = None
    memory: int = 2**30
    threads: int = 1
    progress: Progress = SILENT
    kept: Kept = field(default_factory=Kept, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.memory < LEAST_MEMORY:
            raise InputError(f"{self.memory} bytes of memory", "give 64MiB or more")
        check_fold(self.layout)
        if self.centre not in CENTRES:
            raise InputError(f"unknown centre '{self.centre}'", f"known: {', '.join(CENTRES)}")
        if self.centre != "corpus" and self.name != "next-token":
            raise InputError(
                f"--centre {self.centre} does not apply to --init {self.name}", "leave it out"
            )
        if self.sums is not None and self.joined:
            raise InputError(
                "--keep-sums with --join-documents",
                "leave one out: n-grams that cross documents cannot be added or removed with one",
            )
        if self.layout.vocab_size > 1 << TOKEN_BITS:
            raise InputError(
                f"a vocabulary of {self.layout.vocab_size:,} tokens",
                f"rows are filled from corpora of at most {1 << TOKEN_BITS:,} tokens",
            )
        if self.file.largest >= self.embeddings.tokens:
            raise MismatchError(
                f"the corpus holds token {self.file.largest}, the embeddings have "
                f"{self.embeddings.tokens:,} rows",
                "give the checkpoint of the model that this tokenizer belongs to",
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """The corpus by its documents, how it was read, the embeddings and their centre.

        No order of documents changes the rows, unless n-grams cross them.
        """
        return {
            "tokens": self.file.tokens,
            "documents": self.file.documents,
            **corpus_digest(self.file, self.joined),
            "join_documents": self.joined,
            "embeddings": self.embeddings.parameters,
            **({} if self.centre == "corpus" else {"centre": self.centre}),
        }

    @property
    def token_pairs(self) -> TokenPairs:
        """The pairs that the corpus adds to the rows."""
        follow = self.name == "next-token"
        return TokenPairs(layout=self.layout, file=self.file, follow=follow, joined=self.joined)

    @property
    def scratch_bytes(self) -> int:
        """Bytes on the disk while rows are made: the tokens, and the pairs of at most two orders,
        since chunks of rows do not end where the columns of an order end."""
        pairs = sorted(self.token_pairs.most_pairs(order) for order in self.layout.orders)
        return 4 * self.file.tokens + 16 * sum(pairs[-2:])

    def filler(self, layer: int, dim: int) -> Filler | None:
        """Raises ValueError: rows are made by passes alone."""
        raise ValueError(f"rows of {self.name} are made by passes")

    def bound(self, layer: int, dim: int) -> float:
        """Return the largest value of a vector plus that of the mean, over all columns."""
        followed = self.followed()
        found = 0.0
        for column in range(self.layout.columns):
            own = column_vectors(self.embeddings, layer, column, dim, followed)
            largest = float(np.abs(own.values.astype(np.int32)).max(initial=0))
            found = max(found, (largest + float(np.abs(own.mean).max())) * own.scale)
        return found

    def sums_arrays(self, dim: int) -> list[ChunkedArray]:
        """Return what is kept for updates: the sums of each layer, and the documents' hashes."""
        if self.sums is None:
            return []
        layers = [sums_array(entry.layer, entry.rows, dim) for entry in self.layout.layers]
        return [*layers, documents_array(max(self.file.documents, 1))]

    def kept_sums(self, dim: int) -> KeptSums:
        """Return what the sums of all columns need besides: made when the rows are there."""
        states = {
            (entry.layer, column): self._column_state(entry.layer, column, dim)
            for entry in self.layout.layers
            for column in range(self.layout.columns)
        }
        return KeptSums(
            fingerprint=self.layout.fingerprint,
            dim=dim,
            init=self.name,
            parameters=self.parameters,
            columns=states,
            followed=0 if (followed := self.followed()) is None else int(followed.sum()),
        )

    def hashes(self) -> NDArray[np.uint64]:
        """Return the hash of each document of the corpus, ascending."""
        from engram_cli.table.inits.corpus.documents import document_hashes

        return document_hashes(self.file.map())

    def _column_state(self, layer: int, column: int, dim: int) -> ColumnState:
        if (layer, column) not in self.kept.columns:
            self._vectors(layer, column, dim)
        return self.kept.columns[layer, column]

    def _vectors(self, layer: int, column: int, dim: int) -> ColumnVectors:
        """Return the vectors of a column; where sums are kept, note them in numbers."""
        own = column_vectors(self.embeddings, layer, column, dim, self.followed())
        if self.sums is not None:
            self.kept.columns[layer, column] = ColumnState(
                scale=own.scale,
                largest=int(np.abs(own.values.astype(np.int32)).max(initial=0)),
                total=tuple(own.total.tolist()),
            )
        return own

    def arrays(self, dim: int) -> list[ChunkedArray]:
        """Return the projections, one array a layer: a matrix [hidden, dim] for each column."""
        hidden = self.embeddings.hidden
        if hidden is None:
            return []
        height = self.layout.columns * hidden
        return [
            chunked(projection_array(entry.layer), height, dim, PROJECTION_TYPE, height)
            for entry in self.layout.layers
        ]

    def values(self, array: ChunkedArray) -> NDArray[np.float32]:
        """Return the content of one of `arrays`."""
        assert isinstance(self.embeddings, MatrixEmbeddings)
        layer, dim = int(array.name.rpartition("/")[2]), array.shape[1]
        columns = range(self.layout.columns)
        return np.concatenate([self.embeddings.projection(layer, c, dim) for c in columns])

    def passes(self, layer: int, dim: int, spans: Sequence[Span]) -> list[list[int]]:
        """Return which of `spans` are made together, as indices: as many as memory allows."""
        return self.memory_plan(dim).passes(self.layout.layer(layer), spans)

    def memory_plan(self, dim: int) -> MemoryPlan:
        """Return what is held together while rows of `dim` values are made."""
        return MemoryPlan(
            pairs=self.token_pairs,
            vector_bytes=2 * dim * self.embeddings.tokens,
            memory=self.memory,
            threads=self.threads,
        )

    @contextmanager
    def prepared(
        self, layer: int, dim: int, spans: Sequence[Span], scratch: Path
    ) -> Iterator[Filler]:
        """Yield what fills the rows of `spans`.

        A file of pairs is written into `scratch` by the first pass that needs it, and removed by
        the first that does not.
        """
        entry = self.layout.layer(layer)
        whole = (min(first for first, _ in spans), max(first + count for first, count in spans))
        parts = dict(columns_of(entry, (whole[0], whole[1] - whole[0])))
        orders = {self.layout.orders[column // self.layout.heads] for column in parts}
        pair_files = {order: self._pair_file(layer, order, scratch) for order in sorted(orders)}
        for path in set(scratch.glob("pairs-*")) - set(pair_files.values()):
            path.unlink()
        self.followed()  # once, before threads ask for it
        plan = plan_layer(self.layout, entry)
        records = None if self.sums is None else map_sums(self.sums, layer, entry.rows, dim)

        def deal(spans: Mapping[int, Span]) -> dict[int, ColumnPart]:
            pairs = map_pairs(pair_files[self.layout.orders[min(spans) // self.layout.heads]])
            with ThreadPoolExecutor(self.threads) as pool:
                found = list(pool.map(lambda c: self._vectors(layer, c, dim), spans))
            vectors = dict(zip(spans, found, strict=True))
            take = self.kept.buffer_pool.take
            parts = deal_out([pairs], plan, spans, vectors, take, self.threads)
            if records is not None:
                for column, part in parts.items():
                    first = entry.offsets[column]
                    part.records = records[first : first + entry.moduli[column]]
            return parts

        def release(part: ColumnPart) -> None:
            self.kept.buffer_pool.give(part.release())

        columns = PartitionedColumns(self.memory_plan(dim).groups(entry, parts), deal, release)
        yield partial(fill_columns, entry, columns)

    def followed(self) -> NDArray[np.int64] | None:
        """Return the weights int64[V] of the mean that is subtracted, None where none is."""
        if self.name == "next-token" and self.kept.followed is None:
            if self.centre == "vocabulary":
                self.kept.followed = np.ones(self.embeddings.tokens, dtype=np.int64)
            else:
                self.kept.followed = self.token_pairs.follower_counts(self.threads)
        return self.kept.followed

    @property
    def _key(self) -> str:
        """Identifies what a file of pairs was written for."""
        own = [self.name, self.layout.fingerprint, self.file.digest, str(self.joined)]
        return sha256_bytes(" ".join(own).encode())[-16:]

    def _pair_file(self, layer: int, order: int, scratch: Path) -> Path:
        path = scratch / f"pairs-{self._key}-{layer}-{order}.u64"
        if not path.exists():
            part = path.with_suffix(".part")
            self.progress.start(f"{order}-grams of layer {layer}", self.file.tokens, "tokens")
            with output_errors(path):
                write_pairs(
                    part,
                    self.token_pairs,
                    layer,
                    order,
                    memory=fixed_bytes(self.memory),
                    threads=self.threads,
                    progress=self.progress,
                )
                part.replace(path)
        return path


NextToken = partial(CorpusFill, name="next-token")
"""Rows: the mean vector of the tokens that follow their n-grams, less the mean over the corpus."""

TokenMean = partial(CorpusFill, name="token-mean")
"""Rows: the mean vector of the tokens of their n-grams, over every occurrence."""


def corpus_digest(file: TokenFile, joined: bool) -> dict[str, str]:
    """Return what names the corpus among the parameters of an init."""
    if joined:
        return {"tokens_xxh64": file.digest}
    return {"documents_xxh64": file.documents_digest}


def column_vectors(
    embeddings: Embeddings,
    layer: int,
    column: int,
    dim: int,
    followed: NDArray[np.int64] | None,
) -> ColumnVectors:
    """Return the vectors of a column; `followed` int64[V]: the weights of the mean to subtract."""
    values, scale = embeddings.vectors(layer, column, dim)
    sums = np.zeros(dim, dtype=np.int64)
    mean = sums.astype(np.float64)
    if followed is not None and followed.any():
        kernels.weighted_sum(values, followed[: len(values)], sums)
        mean = sums.astype(np.float64) / np.float64(followed.sum())
    return ColumnVectors(values=values, scale=scale, mean=mean, total=sums)


def fill_columns(
    entry: LayerHash, columns: PartitionedColumns[Any], first: int, out: NDArray[np.float32]
) -> None:
    """Write the rows from `first` of a layer into `out` float32[n, w].

    Rows of no column, the scheme's padding, are zero.
    """
    offsets, done = entry.offsets, 0
    for column, (begin, end) in columns_of(entry, (first, len(out))):
        done = offsets[column] + end - first
        columns.fill(column, begin, out[done - (end - begin) : done])
    out[done:] = 0
