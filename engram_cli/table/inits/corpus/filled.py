"""token-mean and next-token: what a corpus says about its n-grams, written into their rows.

In: a token file, a layout, embeddings. Out: rows, made by passes over ranges of them so that
memory is bounded. Rows depend on none of that: every sum is one of integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
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
from engram_cli.table.inits.corpus.pairs import Occurrences, check_fold, write_pairs
from engram_cli.table.inits.corpus.tokens import TokenFile

_ENTRY = 8  # bytes of a pair in a bucket
_LEAST_MEMORY = 64 * 2**20
_TOGETHER = 2  # columns dealt out together: reading pairs for one alone took 3 ns each of 12


class Kept:
    """What one pass leaves to the next: memory, and how often each token follows another one."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.buffer_pool = BufferPool()
        self.followed: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFill:
    """Rows from the corpus in `file`; `memory` bytes at most are taken, about.

    `joined`: n-grams run across documents. `memory`, `threads` and `progress` change no row.
    """

    name: str
    layout: HashLayout
    file: TokenFile
    embeddings: Embeddings
    joined: bool = False
    memory: int = 2**30
    threads: int = 1
    progress: Progress = SILENT
    kept: Kept = field(default_factory=Kept, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.memory < _LEAST_MEMORY:
            raise InputError(f"{self.memory} bytes of memory", "give 64MiB or more")
        check_fold(self.layout)
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
        """The corpus by its tokens, how it was read, and the embeddings."""
        return {
            "tokens": self.file.tokens,
            "documents": self.file.documents,
            "tokens_xxh64": self.file.digest,
            "join_documents": self.joined,
            "embeddings": self.embeddings.parameters,
        }

    @property
    def occurrences(self) -> Occurrences:
        """What the corpus adds to the rows."""
        follow = self.name == "next-token"
        return Occurrences(layout=self.layout, file=self.file, follow=follow, joined=self.joined)

    @property
    def scratch_bytes(self) -> int:
        """What lies on the disk at most while rows are made: the tokens, the pairs of two orders.

        Two, because chunks of rows do not end where the columns of an order end.
        """
        pairs = sorted(self.occurrences.most_pairs(order) for order in self.layout.orders)
        return 4 * self.file.tokens + 16 * sum(pairs[-2:])

    def filler(self, layer: int, dim: int) -> Filler | None:
        """No row can be had without a pass. Raises ValueError."""
        raise ValueError(f"rows of {self.name} are made by passes")

    def bound(self, layer: int, dim: int) -> float:
        """The largest value of a vector and of the mean that is taken away, in all columns."""
        followed = self.followed()
        found = 0.0
        for column in range(self.layout.columns):
            own = column_vectors(self.embeddings, layer, column, dim, followed)
            largest = float(np.abs(own.values.astype(np.int32)).max(initial=0))
            found = max(found, (largest + float(np.abs(own.mean).max())) * own.scale)
        return found

    def arrays(self, dim: int) -> list[ChunkedArray]:
        """The projections, one array a layer: the matrix [hidden, dim] of each column in turn."""
        hidden = self.embeddings.hidden
        if hidden is None:
            return []
        height = self.layout.columns * hidden
        return [
            chunked(projection_array(entry.layer), height, dim, PROJECTION_TYPE, height)
            for entry in self.layout.layers
        ]

    def values(self, array: ChunkedArray) -> NDArray[np.float32]:
        """The content of one of `arrays`."""
        assert isinstance(self.embeddings, MatrixEmbeddings)
        layer, dim = int(array.name.rpartition("/")[2]), array.shape[1]
        columns = range(self.layout.columns)
        return np.concatenate([self.embeddings.projection(layer, c, dim) for c in columns])

    def passes(self, layer: int, dim: int, spans: Sequence[Span]) -> list[list[int]]:
        """Which of `spans` (of rows) are made together, as their indices: what memory allows."""
        entry = self.layout.layer(layer)
        room = self.memory - self._fixed
        groups: list[list[int]] = []
        used, held = 0, set[int]()
        for index, span in enumerate(spans):
            parts = list(columns_of(entry, span))
            need = sum(self._entry_bytes(entry, *part) for part in parts)
            new = {column for column, _ in parts} - held
            cost = need + len(new) * self._vector_bytes(dim)
            if not groups or used + cost > room:
                groups.append([])
                used, held = 0, set()
                cost = need + len(parts) * self._vector_bytes(dim)
            groups[-1].append(index)
            used += cost
            held |= {column for column, _ in parts}
        return groups

    @contextmanager
    def prepared(
        self, layer: int, dim: int, spans: Sequence[Span], scratch: Path
    ) -> Iterator[Filler]:
        """What fills the rows of `spans` while the block runs; files of pairs lie in `scratch`.

        A file of pairs is written when a pass needs it, and removed by a pass that does not.
        """
        entry = self.layout.layer(layer)
        whole = (min(first for first, _ in spans), max(first + count for first, count in spans))
        parts = dict(columns_of(entry, (whole[0], whole[1] - whole[0])))
        orders = {self.layout.orders[column // self.layout.heads] for column in parts}
        pair_files = {order: self._pair_file(layer, order, scratch) for order in sorted(orders)}
        _keep_only(scratch, set(pair_files.values()))
        followed = self.followed()
        plan = plan_layer(self.layout, entry)

        def deal(spans: Mapping[int, Span]) -> dict[int, ColumnPart]:
            pairs = map_pairs(pair_files[self.layout.orders[min(spans) // self.layout.heads]])
            take = self.kept.buffer_pool.take

            def some(own: dict[int, Span]) -> dict[int, ColumnPart]:
                vectors = {c: column_vectors(self.embeddings, layer, c, dim, followed) for c in own}
                return deal_out([pairs], plan, own, vectors, take)

            made: dict[int, ColumnPart] = {}
            with ThreadPoolExecutor(self.threads) as pool:
                for found in pool.map(some, _shares(spans, self.threads)):
                    made |= found
            return made

        def release(part: ColumnPart) -> None:
            self.kept.buffer_pool.give(part.release())

        columns = PartitionedColumns(self._together(entry, parts, dim), deal, release)
        yield partial(fill_columns, entry, columns)

    def _together(
        self, entry: LayerHash, parts: Mapping[int, Span], dim: int
    ) -> list[dict[int, Span]]:
        """Columns that are dealt out together, by all threads: who wants their rows would wait.

        Where memory does not allow two, it is one, or one after another some rows of one: then a
        chunk of rows takes more than a pass over the pairs.
        """
        groups: list[dict[int, Span]] = []
        room = max(self.memory - self._fixed, 1)
        for _, own in groupby(sorted(parts), lambda column: column // self.layout.heads):
            columns, size = list(own), max(_TOGETHER, self.threads)
            needs = (self._entry_bytes(entry, c, parts[c]) for c in columns)
            need = max(needs) + self._vector_bytes(dim)
            size = max(min(size, room // need), 1)
            if need <= room:
                cuts = [columns[at : at + size] for at in range(0, len(columns), size)]
                groups += [{column: parts[column] for column in cut} for cut in cuts]
            else:
                groups += [
                    {c: span} for c in columns for span in self._cut(entry, c, parts[c], dim)
                ]
        return groups

    def _cut(self, entry: LayerHash, column: int, span: Span, dim: int) -> Iterator[Span]:
        """Rows of a column in as many ranges as memory asks for."""
        room = max(self.memory - self._fixed - self._vector_bytes(dim), self.memory // 8, 1)
        count = -(-self._entry_bytes(entry, column, span) // room)
        step = max(-(-(span[1] - span[0]) // count), 1)
        for begin in range(*span, step):
            yield begin, min(begin + step, span[1])

    def followed(self) -> NDArray[np.int64] | None:
        """int64[V]: what the mean that is taken away is weighted by, None where none is."""
        if self.name == "next-token" and self.kept.followed is None:
            self.kept.followed = self.occurrences.follower_counts()
        return self.kept.followed

    @property
    def _key(self) -> str:
        """What a file of pairs on the disk must have been written for."""
        own = [self.name, self.layout.fingerprint, self.file.digest, str(self.joined)]
        return sha256_bytes(" ".join(own).encode())[-16:]

    @property
    def _fixed(self) -> int:
        return self.memory // 4  # blocks of pairs, a chunk on its way for each thread

    def _entry_bytes(self, entry: LayerHash, column: int, span: Span) -> int:
        order = self.layout.orders[column // self.layout.heads]
        share = (span[1] - span[0]) / entry.moduli[column]
        return int(self.occurrences.most_pairs(order) * share * _ENTRY)

    def _vector_bytes(self, dim: int) -> int:
        return 2 * dim * self.embeddings.tokens

    def _pair_file(self, layer: int, order: int, scratch: Path) -> Path:
        path = scratch / f"pairs-{self._key}-{layer}-{order}.u64"
        if not path.exists():
            part = path.with_suffix(".part")
            self.progress.start(f"{order}-grams of layer {layer}", self.file.tokens, "tokens")
            with output_errors(path):
                write_pairs(
                    part,
                    self.occurrences,
                    layer,
                    order,
                    memory=self._fixed,
                    threads=self.threads,
                    progress=self.progress,
                )
                part.replace(path)
        return path


NextToken = partial(CorpusFill, name="next-token")
"""Rows: the mean vector of the tokens that follow their n-grams, less the mean over the corpus."""

TokenMean = partial(CorpusFill, name="token-mean")
"""Rows: the mean vector of the tokens of their n-grams, over every occurrence."""


def _shares(spans: Mapping[int, Span], threads: int) -> list[dict[int, Span]]:
    """Columns in at most so many parts."""
    columns = sorted(spans)
    size = -(-len(columns) // threads)
    cuts = [columns[at : at + size] for at in range(0, len(columns), size)]
    return [{column: spans[column] for column in cut} for cut in cuts]


def columns_of(entry: LayerHash, span: Span) -> Iterator[tuple[int, Span]]:
    """(column, its rows begin..end) that a span (first row, count) of the layer covers."""
    first, count = span
    for column, (offset, modulus) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
        begin, end = max(first - offset, 0), min(first + count - offset, modulus)
        if begin < end:
            yield column, (begin, end)


def column_vectors(
    embeddings: Embeddings,
    layer: int,
    column: int,
    dim: int,
    followed: NDArray[np.int64] | None,
) -> ColumnVectors:
    """The vectors of a column; `followed` int64[V] are the weights of the mean to take away."""
    values, scale = embeddings.vectors(layer, column, dim)
    sums = np.zeros(dim, dtype=np.int64)
    mean = sums.astype(np.float64)
    if followed is not None and followed.any():
        kernels.weighted_sum(values, followed[: len(values)], sums)
        mean = sums.astype(np.float64) / np.float64(followed.sum())
    return ColumnVectors(values=values, scale=scale, mean=mean)


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


def _keep_only(scratch: Path, paths: set[Path]) -> None:
    for path in scratch.glob("pairs-*"):
        if path not in paths:
            path.unlink()
