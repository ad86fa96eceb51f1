"""build-table's corpus on a cluster: Ray tasks make tokens, pairs and rows; who builds writes them.

Workers need the corpus, not the disk of the table: tokens come back in order into the builder's
scratch file, whole rows into its chunks, so that journal, checksums and digest are made in one
place. Rows are those of the local engine to the bit: all sums are of integers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import ReadPosition
from engram_cli.corpus.partitions import Plan
from engram_cli.engines.fill_tasks import (
    FillShared,
    TaskMemory,
    part_pairs,
    part_rows,
    part_vectors,
    token_pieces,
)
from engram_cli.engines.filling import FillEngine, TokenWork
from engram_cli.engines.ray import Cluster, connected, fetched
from engram_cli.engines.tasks import (
    TASKS_A_SLOT,
    check_reachable,
    portable,
    reading_of,
)
from engram_cli.progress import Progress
from engram_cli.stats.memory import base_bytes
from engram_cli.table.inits.base import Filler, Span
from engram_cli.table.inits.corpus.embeddings import Embeddings, MatrixEmbeddings
from engram_cli.table.inits.corpus.filled import CorpusFill, columns_of, fill_columns
from engram_cli.table.inits.corpus.pairs import token_spans
from engram_cli.table.inits.corpus.tokens import Piece, TokenWriter
from engram_cli.version import __version__

_AHEAD = 2  # partitions a slot that are tokenised or wait to be written
_STORED_SHARE = 4  # rows of a pass take one part in so many of the object stores
_LEAST_ROWS = 2**16  # of a range: below, hashing all pairs for it outweighs adding its own
_MATRIX_ROWS = 2**11  # of an embedding matrix that are one object, read at a time


@contextmanager
def ray_fill(address: str | None, threads: int, progress: Progress) -> Iterator[FillEngine]:
    """The cluster at `address`, see `connected`; `threads`: CPUs of a task that reads texts."""
    with connected(address) as cluster, cluster.failures():
        yield RayFill(cluster, threads, progress)


class RayFill:
    """The workers of a cluster."""

    def __init__(self, cluster: Cluster, threads: int, progress: Progress) -> None:
        self._cluster, self._threads, self._progress = cluster, threads, progress

    def write_tokens(self, work: TokenWork, writer: TokenWriter, progress: Progress) -> None:
        """As `FillEngine` says; goes on with the partition after the last one that was whole."""
        check_reachable(work.plan.files)
        first = _partition_after(work.plan, writer.read_position)
        if first is None:
            progress.note("they end inside a partition, so the cluster starts over")
            writer.restart()
            progress.start("tokens of the corpus", work.plan.size, "bytes")
        keep = work.encoder if work.insisted else writer.encoder
        pieces = self._pieces(work, keep or work.encoder, first or 0)
        writer.write_pieces(pieces, keep, progress)

    def _pieces(self, work: TokenWork, encoder: str, first: int) -> Generator[Piece, None, None]:
        """The words of the partitions from `first` on, in order; a few partitions are underway."""
        plan, cluster = work.plan, self._cluster
        memory = base_bytes(text=work.tokenizer is not None)
        slots = cluster.slots(self._threads, memory)
        task = cluster.task(token_pieces, cpus=self._threads, memory=memory, returns="streaming")
        reading = cluster.put(
            reading_of(work.layout, work.options, work.tokenizer, encoder, self._threads)
        )
        self._progress.note(
            f"ray: tokens of {len(plan) - first} partitions, {slots} at a time, "
            f"{memory / 1e6:,.0f} MB each"
        )
        waiting, underway = deque(range(first, len(plan))), deque[Any]()
        try:
            while waiting or underway:
                while waiting and len(underway) < _AHEAD * slots:
                    number = waiting.popleft()
                    underway.append(task(reading, portable(plan.part(number, number + 1))))
                for item in cluster.items(underway[0]):
                    if isinstance(item, Piece):
                        yield item
                    elif item.error is not None:
                        raise item.error
                underway.popleft()
                done = len(plan) - len(waiting) - len(underway)
                last = plan.begins[done] if done < len(plan) else len(plan.files)
                empty = np.empty(0, dtype=np.uint32)
                yield Piece(words=empty, size=0, read_position=ReadPosition(file=last))
        finally:
            cluster.cancel(underway)

    def placed(self, fill: CorpusFill) -> CorpusFill:
        """`fill` with its passes on the cluster. Raises InputError where no node has the memory."""
        slots = self._cluster.slots(1, fill.memory)
        self._progress.note(
            f"ray: rows are summed by {slots} tasks at a time, {fill.memory / 1e6:,.0f} MB each"
        )
        own = {each.name: getattr(fill, each.name) for each in fields(fill)}
        return ClusterFill(**own, cluster=self._cluster, slots=slots)


@dataclass(slots=True)
class _There:
    """What lies on the cluster: words by span, pairs by (layer, order), what tasks share."""

    words: list[Any] = field(default_factory=list)
    pairs: dict[tuple[int, int], list[Any]] = field(default_factory=dict)
    shared: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFill(CorpusFill):
    """A fill whose passes are tasks of `cluster`, `slots` at a time; `memory` is that of a task."""

    cluster: Cluster
    slots: int
    there: _There = field(default_factory=_There, compare=False)

    def passes(self, layer: int, dim: int, spans: Sequence[Span]) -> list[list[int]]:
        """Which spans are made together: what a part of the object stores holds."""
        room = self.cluster.store_bytes // _STORED_SHARE
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
        """What fills the rows of `spans`, which are all made when the block begins."""
        entry = self.layout.layer(layer)
        memory = self._divided(dim)
        whole = sum(count for _, count in spans)
        least = max(whole // (TASKS_A_SLOT * self.slots), _LEAST_ROWS)
        most = min(memory.rows, least)
        parts = [part for run in _runs(spans) for part in columns_of(entry, run)]
        ranges = [(column, cut) for column, span in parts for cut in _cut(span, most)]
        columns = sorted({column for column, _ in ranges})
        orders = {column: self.layout.orders[column // self.layout.heads] for column in columns}
        with self.cluster.failures():
            shared = self._shared(dim, memory)
            for order in sorted(set(orders.values())):
                self._pairs(layer, order, shared, memory)
            vectors = self._vectors(layer, shared, columns)
            task = self.cluster.task(part_rows, cpus=1, memory=self.memory)
            self.progress.start(f"sums of layer {layer}", whole, "rows")
            calls = []
            for column, span in ranges:
                pairs = self.there.pairs[layer, orders[column]]
                call = task(shared, layer, column, span, vectors[column], pairs, fetched)
                calls.append((*call, span[1] - span[0]))
            rows = self.cluster.gather(calls, self.progress)
            del calls
        made = {column: _Rows(self.cluster) for column in columns}
        for (column, span), reference in zip(ranges, rows, strict=True):
            made[column].take(span, reference)
        del rows
        yield partial(fill_columns, entry, made)

    def _divided(self, dim: int) -> TaskMemory:
        lags = max(len(self.occurrences.lags(order)) for order in self.layout.orders)
        return TaskMemory.divide(self.memory, self.embeddings.tokens, dim, lags)

    def _shared(self, dim: int, memory: TaskMemory) -> Any:
        there = self.there
        if there.shared is None:
            shared = FillShared(
                version=__version__,
                what=self.occurrences,
                embeddings=_sent(self.embeddings, self.cluster),
                dim=dim,
                followed=self.followed(),
                most=memory.pairs,
            )
            there.shared = self.cluster.put(shared)
        return there.shared

    def _vectors(self, layer: int, shared: Any, columns: list[int]) -> dict[int, Any]:
        task = self.cluster.task(part_vectors, cpus=1, memory=self.memory)
        self.progress.start(f"vectors of layer {layer}", len(columns), "columns")
        calls = [(*task(shared, layer, column), 1) for column in columns]
        return dict(zip(columns, self.cluster.gather(calls, self.progress), strict=True))

    def _pairs(self, layer: int, order: int, shared: Any, memory: TaskMemory) -> None:
        """Have the pairs of an order there; those of other layers are given up."""
        there = self.there
        for key in [key for key in there.pairs if key[0] != layer]:
            del there.pairs[key]
        if (layer, order) in there.pairs:
            return
        parts = token_spans(self.occurrences, memory.span)
        if not there.words:
            words = self.file.map()
            there.words = [self.cluster.put(np.array(words[p.first : p.last])) for p in parts]
        task = self.cluster.task(part_pairs, cpus=1, memory=self.memory)
        self.progress.start(f"{order}-grams of layer {layer}", self.file.tokens, "tokens")
        calls = [
            (*task(shared, layer, order, words, part), part.end - part.begin)
            for words, part in zip(there.words, parts, strict=True)
        ]
        there.pairs[layer, order] = self.cluster.gather(calls, self.progress)


class _Rows:
    """Rows of a column that lie on the cluster, each handed out once and then forgotten."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = Lock()
        self._there: dict[Span, Any] = {}
        self._here: dict[Span, NDArray[np.float32]] = {}
        self._left: dict[Span, int] = {}

    def take(self, span: Span, reference: Any) -> None:
        """The rows begin..end-1 of the column are what `reference` stands for."""
        self._there[span] = reference
        self._left[span] = span[1] - span[0]

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        """Write the rows from `first` into `out` float32[n, w]. Raises EngineError."""
        last = first + len(out)
        for span in [span for span in self._left if span[0] < last and first < span[1]]:
            begin, end = max(span[0], first), min(span[1], last)
            rows = self._fetched(span)
            out[begin - first : end - first] = rows[begin - span[0] : end - span[0]]
            with self._lock:
                self._left[span] -= end - begin
                if not self._left[span]:
                    self._there[span] = None
                    self._here.pop(span)

    def _fetched(self, span: Span) -> NDArray[np.float32]:
        with self._lock:
            if span not in self._here:
                with self._cluster.failures():
                    self._here[span] = self._cluster.get(self._there[span])
            return self._here[span]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """The rows of a matrix that lies on a cluster in blocks of `_MATRIX_ROWS`."""

    blocks: tuple[Any, ...]

    def __call__(self, begin: int, end: int) -> NDArray[np.float32]:
        """float32[end - begin, hidden]."""
        found = [
            fetched(self.blocks[at])[max(begin - at * _MATRIX_ROWS, 0) : end - at * _MATRIX_ROWS]
            for at in range(begin // _MATRIX_ROWS, -(-end // _MATRIX_ROWS))
        ]
        return np.concatenate(found)


def _sent(embeddings: Embeddings, cluster: Cluster) -> Embeddings:
    """Embeddings for workers that do not have the checkpoint."""
    if not isinstance(embeddings, MatrixEmbeddings):
        return embeddings
    blocks = tuple(
        cluster.put(embeddings.read(begin, min(begin + _MATRIX_ROWS, embeddings.tokens)))
        for begin in range(0, embeddings.tokens, _MATRIX_ROWS)
    )
    return replace(embeddings, read=_Matrix(blocks=blocks))


def _partition_after(plan: Plan, read_position: ReadPosition | None) -> int | None:
    """The number of the first partition that is not read yet; None where a part of it is."""
    if read_position is None:
        return 0
    if read_position.items or read_position.open:
        return None
    if read_position.file == len(plan.files):
        return len(plan)
    return plan.begins.index(read_position.file) if read_position.file in plan.begins else None


def _runs(spans: Sequence[Span]) -> Iterator[Span]:
    """Spans (first row, count) that follow each other, as one."""
    begin, end = 0, 0
    for first, count in spans:
        if first != end:
            if end > begin:
                yield begin, end - begin
            begin = first
        end = first + count
    if end > begin:
        yield begin, end - begin


def _cut(span: Span, most: int) -> list[Span]:
    """The rows begin..end-1 in ranges of about equal size, `most` at most."""
    begin, end = span
    count = -(-(end - begin) // most)
    bounds = [begin + (end - begin) * at // count for at in range(count + 1)]
    return list(pairwise(bounds))
