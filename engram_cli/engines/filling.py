"""Fills rows from the token file of a corpus: rows as tasks for any engine.

Workers need the tokens, not the disk of the table. Whole rows come back into its chunks, so that
journal, checksums and digest are made in one place. Rows are equal to the bit on every engine: all
sums are of integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.engines.base import Engine, Task
from engram_cli.errors import InputError
from engram_cli.hashing.hasher import plan_layer
from engram_cli.progress import Progress
from engram_cli.stats.counting.memory import base_bytes
from engram_cli.table.inits.base import Filler, Span
from engram_cli.table.inits.corpus.buckets import ColumnVectors, PartitionedColumns, summed_rows
from engram_cli.table.inits.corpus.embeddings import Embeddings, MatrixEmbeddings
from engram_cli.table.inits.corpus.filled import CorpusFill, column_vectors, fill_columns
from engram_cli.table.inits.corpus.memory_plan import columns_of
from engram_cli.table.inits.corpus.pairs import TokenPairs, TokenSpan, span_pairs, token_spans

Fetch: TypeAlias = Callable[[Any], NDArray[Any]]
"""Gives the array that a reference stands for, inside a task."""

TASK_BYTES = 2 * 10**9  # of a task, unless the user says otherwise
_PAIR = 24  # bytes of a pair and of its entry in a bucket
_TOKEN_BYTES = 40  # bytes of a token while its pairs are made, for each of its lags
_VECTOR = 24  # bytes of a value of the vectors while they are made
_LONGEST = 2**24  # tokens: beyond, less and less of them are equal
_LEAST_ROOM = 64 * 2**20
_STORED_SHARE = 4  # rows of a pass take one part in so many of what references may hold
_TASKS_A_SLOT = 4  # so that a slot that finishes early takes more
_LEAST_ROWS = 2**16  # of a range: below, hashing all pairs for it outweighs adding its own
_MATRIX_ROWS = 2**11  # of an embedding matrix that are one object, read at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMemory:
    """How the bytes of a summing task are spent.

    `rows`: of a range at most, `pairs`: at a time, `span`: tokens whose pairs are made at once.
    """

    rows: int
    pairs: int
    span: int

    @classmethod
    def divide(cls, total: int, tokens: int, dim: int, lags: int) -> TaskMemory:
        """Return how a task of `total` bytes divides what the vectors of `tokens` tokens leave.

        Half of that holds the sums and rows of a range, the other half pairs. Raises InputError if
        too little is left.
        """
        fixed = base_bytes(text=False) + _VECTOR * tokens * dim
        room = total - fixed
        if room < _LEAST_ROOM:
            raise InputError(
                f"{total / 1e6:,.0f} MB a task", f"give --memory {(fixed + _LEAST_ROOM) // 10**6}MB"
            )
        return cls(
            rows=max(room // 2 // (12 * dim + 8), 1),
            pairs=room // 2 // _PAIR,
            span=min(room // (2 * _TOKEN_BYTES * lags), _LONGEST),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FillShared:
    """What all tasks of a fill need, sent once; `most`: pairs added at a time."""

    what: TokenPairs
    embeddings: Embeddings
    dim: int
    followed: NDArray[np.int64] | None
    most: int


@dataclass(slots=True)
class _Held:
    """What an engine holds: words by span, pairs by (layer, order), what tasks share."""

    words: list[Any] = field(default_factory=list)
    pairs: dict[tuple[int, int], list[Any]] = field(default_factory=dict)
    shared: Any = None


# Tasks get arrays that are read-only, and kernels take no such ones, so these are copied.


def make_vectors(shared: FillShared, layer: int, column: int) -> ColumnVectors:
    """Return the vectors of a column."""
    followed = None if shared.followed is None else np.array(shared.followed)
    return column_vectors(shared.embeddings, layer, column, shared.dim, followed)


def make_pairs(
    shared: FillShared, layer: int, order: int, words: NDArray[np.uint32], span: TokenSpan
) -> NDArray[np.uint64]:
    """Return the united pairs of an order in a span of the corpus, uint64[2 * n]."""
    return span_pairs(shared.what, layer, order, np.array(words), span)


def make_rows(
    shared: FillShared,
    layer: int,
    column: int,
    span: Span,
    vectors: ColumnVectors,
    blocks: Sequence[Any],
    fetch: Fetch,
) -> NDArray[np.float32]:
    """Return float32[n, dim]: the rows of a range of a column, from all pairs of its order.

    One block after the other is fetched, so that memory does not depend on the corpus.
    """
    layout = shared.what.layout
    own = replace(vectors, values=np.array(vectors.values), mean=np.array(vectors.mean))
    plan = plan_layer(layout, layout.layer(layer))
    pairs = (fetch(block) for block in blocks)
    return summed_rows(pairs, plan, column, span, own, most=shared.most)


def on_chosen_engine(engine: Engine, fill: CorpusFill, progress: Progress) -> CorpusFill:
    """Return the fill that makes the rows of `fill` on an engine: here with pairs on the disk, on
    a cluster with pairs in its memory. Raises InputError where no node has the memory."""
    if not engine.remote:
        return fill
    slots = engine.slots(Task(function=make_rows, memory=fill.memory))
    progress.note(
        f"ray: rows are summed by {slots} tasks at a time, {fill.memory / 1e6:,.0f} MB each"
    )
    return on_engine(engine, fill, slots)


def on_engine(engine: Engine, fill: CorpusFill, slots: int) -> EngineFill:
    """Return `fill` with its passes as tasks, `slots` at a time."""
    own = {each.name: getattr(fill, each.name) for each in fields(fill)}
    return EngineFill(**own, engine=engine, slots=slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFill(CorpusFill):
    """A fill whose passes are tasks, `slots` at a time; `memory` is that of a task."""

    engine: Engine
    slots: int
    held: _Held = field(default_factory=_Held, compare=False)

    def passes(self, layer: int, dim: int, spans: Sequence[Span]) -> list[list[int]]:
        """Return which spans are made together: what a part of the engine's stores holds."""
        room = self.engine.store_bytes // _STORED_SHARE
        groups: list[list[int]] = []
        used = 0
        for index, (_, count) in enumerate(spans):
            size = 4 * dim * count
            if not groups or used + size > room:
                groups.append([])
                used = 0
            groups[-1].append(index)
            used += size
        return groups

    @contextmanager
    def prepared(
        self, layer: int, dim: int, spans: Sequence[Span], scratch: Path
    ) -> Iterator[Filler]:
        """Yield what fills the rows of `spans`, which are all made when the block begins."""
        entry, memory = self.layout.layer(layer), self._memory(dim)
        whole = sum(count for _, count in spans)
        most = min(memory.rows, max(whole // (_TASKS_A_SLOT * self.slots), _LEAST_ROWS))
        parts = [part for run in _runs(spans) for part in columns_of(entry, run)]
        ranges = [(column, cut) for column, span in parts for cut in _cut(span, most)]
        columns = sorted({column for column, _ in ranges})
        orders = {column: self.layout.orders[column // self.layout.heads] for column in columns}
        shared = self._shared(dim, memory)
        for order in sorted(set(orders.values())):
            self._send_pairs(layer, order, shared, memory)
        self.progress.start(f"vectors of layer {layer}", len(columns), "columns")
        made = self._map(make_vectors, [((shared, layer, column), 1) for column in columns])
        vectors = dict(zip(columns, made, strict=True))
        self.progress.start(f"sums of layer {layer}", whole, "rows")
        fetch = self.engine.fetch
        calls = [
            (
                (shared, layer, c, span, vectors[c], self.held.pairs[layer, orders[c]], fetch),
                span[1] - span[0],
            )
            for c, span in ranges
        ]
        rows = self._map(make_rows, calls)
        del calls, made, vectors
        references = dict(zip(ranges, rows, strict=True))
        del rows

        def get(spans: Mapping[int, Span]) -> dict[int, _FetchedRows]:
            return {
                column: _FetchedRows(span[0], self.engine.get(references.pop((column, span))))
                for column, span in spans.items()
            }

        groups = [{column: span} for column, span in ranges]
        yield partial(fill_columns, entry, PartitionedColumns(groups, get, lambda part: None))

    def _map(self, function: Callable[..., Any], calls: Sequence[Any]) -> list[Any]:
        return self.engine.map(Task(function=function, memory=self.memory), calls, self.progress)

    def _memory(self, dim: int) -> TaskMemory:
        lags = max(len(self.token_pairs.lags(order)) for order in self.layout.orders)
        return TaskMemory.divide(self.memory, self.embeddings.tokens, dim, lags)

    def _shared(self, dim: int, memory: TaskMemory) -> Any:
        if self.held.shared is None:
            shared = FillShared(
                what=self.token_pairs,
                embeddings=_sent(self.embeddings, self.engine),
                dim=dim,
                followed=self.followed(),
                most=memory.pairs,
            )
            self.held.shared = self.engine.put(shared)
        return self.held.shared

    def _send_pairs(self, layer: int, order: int, shared: Any, memory: TaskMemory) -> None:
        """Have the engine hold the pairs of an order; those of other layers are dropped."""
        held = self.held
        for key in [key for key in held.pairs if key[0] != layer]:
            del held.pairs[key]
        if (layer, order) in held.pairs:
            return
        parts = token_spans(self.token_pairs, memory.span)
        if not held.words:
            words = self.file.map()
            held.words = [self.engine.put(np.array(words[p.first : p.last])) for p in parts]
        self.progress.start(f"{order}-grams of layer {layer}", self.file.tokens, "tokens")
        calls = [
            ((shared, layer, order, words, part), part.end - part.begin)
            for words, part in zip(held.words, parts, strict=True)
        ]
        held.pairs[layer, order] = self._map(make_pairs, calls)


@dataclass(frozen=True, slots=True)
class _FetchedRows:
    """Rows of a column from `begin` on."""

    begin: int
    rows: NDArray[np.float32]

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        """Write the rows from `first` into `out` float32[n, w]."""
        out[:] = self.rows[first - self.begin :][: len(out)]


def _read_blocks(
    blocks: Sequence[Any], size: int, fetch: Fetch, begin: int, end: int
) -> NDArray[np.float32]:
    """Return the rows begin..end-1 of a matrix that an engine holds in blocks of `size` rows."""
    found = [
        fetch(blocks[at])[max(begin - at * size, 0) : end - at * size]
        for at in range(begin // size, -(-end // size))
    ]
    return np.concatenate(found)


def _sent(embeddings: Embeddings, engine: Engine) -> Embeddings:
    """Return embeddings for workers that do not have the checkpoint."""
    if not isinstance(embeddings, MatrixEmbeddings):
        return embeddings
    size, tokens = _MATRIX_ROWS, embeddings.tokens
    begins = range(0, tokens, size)
    blocks = [engine.put(embeddings.read(at, min(at + size, tokens))) for at in begins]
    return replace(embeddings, read=partial(_read_blocks, blocks, size, engine.fetch))


def _runs(spans: Sequence[Span]) -> list[Span]:
    """Return spans (first row, count) that follow each other as one."""
    runs: list[Span] = []
    for first, count in spans:
        if runs and sum(runs[-1]) == first:
            first, count = runs[-1][0], runs.pop()[1] + count
        runs.append((first, count))
    return runs


def _cut(span: Span, most: int) -> list[Span]:
    """Return the rows begin..end-1 in ranges of about equal size, `most` at most."""
    begin, end = span
    count = -(-(end - begin) // most)
    bounds = [begin + (end - begin) * at // count for at in range(count + 1)]
    return list(pairwise(bounds))
