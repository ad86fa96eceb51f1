"""Counts rows and samples n-grams of a layout: the counters, and the tasks that see every chunk.

Most of it may see chunks in any order, from several threads at a time. An ordered task gets every
chunk in order, from any free thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan, plan_layer
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import Collector, NgramObserver, RowObserver
from engram_cli.stats.counting.jobs import JobQueue
from engram_cli.stats.counting.ngram_buffer import (
    LIST_ITEMS,
    Columns,
    DirectCounter,
    EmptyJob,
    NgramCounter,
    NgramTable,
    key_bits,
    list_bytes,
    lists_together,
    make_counters,
    scratch_items,
    table_bytes,
)
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.sampling.distinct import Sampler
from engram_cli.stats.state import State, nested, numbered, part_of, take_into
from engram_cli.stats.totals import Counts

STEP = 2**18  # tokens that a task takes at a time: about a millisecond
_HASHED = 2**16  # n-grams hashed at a time: half a megabyte, which stays in the L2 cache
_MOST_DEALT = 2**21  # n-grams for whose parts of a column there is room
_TOKEN_BYTES = 16  # of a token in a chunk and in half a one that waits: ids, starts, look-back


class Task(ABC):
    """Sees the whole corpus, part after part.

    One that is not `ordered` may be called by several threads, with parts in any order.
    """

    ordered: bool

    @abstractmethod
    def push(self, chunk: TokenChunk, scratch: NDArray[np.uint32]) -> None:
        """Take a chunk, at most `STEP` tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowTask(Task):
    """Shows observers the rows of the first head of an order of a layer."""

    first_head: LayerPlan
    observers: tuple[RowObserver, ...]
    ordered: bool
    lock: Lock = field(default_factory=Lock)

    def push(self, chunk: TokenChunk, scratch: NDArray[np.uint32]) -> None:
        """Find the rows of a chunk."""
        rows = scratch[: len(chunk)]
        self.first_head.columns(chunk.window.tokens, chunk.window.seen, rows[None])
        with self.lock:
            for observer in self.observers:
                observer.push_rows(rows, chunk)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectorTask(Task):
    """Gives every chunk to a collector."""

    collector: Collector
    lock: Lock = field(default_factory=Lock)

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether the collector asks for it."""
        return self.collector.ordered

    def push(self, chunk: TokenChunk, scratch: NDArray[np.uint32]) -> None:
        """Push the chunk."""
        with self.lock:
            self.collector.push(chunk)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplingTask(Task):
    """Hashes the n-grams of an order for `observers` and, if not None, a `sampler`."""

    hasher: Sampler
    sampler: Sampler | None
    observers: tuple[NgramObserver, ...]
    ordered: bool
    lock: Lock = field(default_factory=Lock)

    def push(self, chunk: TokenChunk, scratch: NDArray[np.uint32]) -> None:
        """Draw from a chunk."""
        for begin in range(0, len(chunk), _HASHED):
            part = chunk.part(begin, min(begin + _HASHED, len(chunk)))
            hashes = scratch[: 2 * len(part)].view(np.uint64)
            self.hasher.hash(part.window, hashes)
            with self.lock:
                if self.sampler is not None:
                    self.sampler.push_hashes(hashes, part.window)
                for observer in self.observers:
                    observer.push_ngrams(hashes, part)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lane:
    """What a thread counts with: its scratch memory, and its tables of n-grams."""

    scratch: NDArray[np.uint32]
    tables: tuple[NgramTable, ...]


class Counter:
    """The counters and samplers of a layout, and the tasks that fill them.

    No two tasks write to the same sampler or collector.
    """

    def __init__(
        self,
        layout: HashLayout,
        sample_size: int,
        collectors: Sequence[Collector] = (),
        threads: int = 1,
    ) -> None:
        self.layout, self._threads = layout, threads
        self.hits = {e.layer: np.zeros(e.rows, dtype=np.uint32) for e in layout.layers}
        self.samplers = tuple(
            Sampler(order, layout.filler_id, sample_size) for order in layout.orders
        )
        self.collectors = tuple(collectors)
        self.counters = tuple(self._counters())
        tasks: tuple[Task, ...] = (
            *self._row_tasks(),
            *self._sampling_tasks(),
            *(CollectorTask(collector=collector) for collector in self.collectors),
        )
        self.ordered = tuple(task for task in tasks if task.ordered)
        self.unordered = tuple(task for task in tasks if not task.ordered)
        self.queue = JobQueue()
        self._lanes: list[Lane] = []

    def lane(self) -> Lane:
        """Return what one more thread counts with; pages that are not used take no memory."""
        tables = (each.table() for each in self.counters if isinstance(each, NgramCounter))
        scratch = np.empty(scratch_bytes(self.layout, self._threads) // 4, dtype=np.uint32)
        lane = Lane(scratch=scratch, tables=tuple(tables))
        self._lanes.append(lane)
        return lane

    def push(self, chunk: TokenChunk, lane: Lane) -> None:
        """Count at most `STEP` tokens, where one thread alone counts."""
        self.count(chunk, lane)
        for task in self.ordered:
            task.push(chunk, lane.scratch)
        self.queue.run_all(lane.scratch)

    def count(self, chunk: TokenChunk, lane: Lane) -> None:
        """Do all that needs no order with at most `STEP` tokens."""
        for table in lane.tables:
            table.push(chunk.window, lane.scratch, self.queue)
        for counter in self.counters:
            if isinstance(counter, DirectCounter):
                counter.push(chunk.window)
        for task in self.unordered:
            task.push(chunk, lane.scratch)

    def empty_tables(self) -> None:
        """Queue jobs that hand over all n-grams in the tables; no thread may be counting."""
        tables = [table for lane in self._lanes for table in lane.tables if table.used]
        self.queue.add(lambda: map(EmptyJob, tables))

    def count_rest(self) -> bool:
        """Queue jobs that count what was handed over; return whether there was anything."""
        counters = [each for each in self.counters if isinstance(each, NgramCounter)]
        with self.queue.lock:
            self.queue.add(lambda: [job for each in counters for job in each.jobs()])
            return self.queue.busy

    def release(self) -> None:
        """Free what threads counted with; all must be counted, or is given up."""
        self._lanes.clear()
        for each in self.counters:
            if isinstance(each, NgramCounter):
                each.release()

    def settle(self) -> None:
        """Count in this thread what is still in tables and lists."""
        self.empty_tables()
        for lane in self._lanes[:1]:
            self.queue.run_all(lane.scratch)
            while self.count_rest():
                self.queue.run_all(lane.scratch)

    def counts(self, *, tokens: int, documents: int, joined: bool) -> Counts:
        """Return the counts; the arrays are not copied."""
        self.settle()
        return Counts(
            layout=self.layout,
            tokens=tokens,
            documents=documents,
            joined=joined,
            hits=self.hits,
            samples=tuple(sampler.sample() for sampler in self.samplers),
        )

    def state(self) -> State:
        """Return the state of counters, samplers and collectors; no thread may be counting."""
        self.settle()
        return nested(
            hits={str(layer): hits for layer, hits in self.hits.items()},
            samplers=numbered([sampler.state() for sampler in self.samplers]),
            collectors=numbered([collector.state() for collector in self.collectors]),
        )

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError, after which this one is unusable."""
        for layer, hits in self.hits.items():
            take_into(state, f"hits/{layer}", hits)
        for index, sampler in enumerate(self.samplers):
            sampler.restore(part_of(state, f"samplers/{index}"))
        for index, collector in enumerate(self.collectors):
            collector.restore(part_of(state, f"collectors/{index}"))

    def _counters(self) -> Iterator[NgramCounter | DirectCounter]:
        """Yield one for each order, or one for each layer and order."""
        layout, together = self.layout, lists_together(self.layout, self._threads)
        plans = {entry.layer: plan_layer(layout, entry) for entry in layout.layers}
        for index, sampler in enumerate(self.samplers):
            columns = tuple(
                Columns(plan=plan, order=index, hits=self.hits[layer])
                for layer, plan in plans.items()
            )
            yield from make_counters(columns, key_bits(layout, sampler.order), together, sampler)

    def _row_tasks(self) -> Iterator[RowTask]:
        """Yield those of each layer and order: one with order, one without, where observed."""
        for entry in self.layout.layers:
            plan = plan_layer(self.layout, entry)
            for index, order in enumerate(self.layout.orders):
                head = Columns(plan=plan, order=index, hits=self.hits[entry.layer]).first_head()
                for ordered in (True, False):
                    asked = (
                        collector.row_observer(entry.layer, order)
                        for collector in self.collectors
                        if collector.ordered == ordered
                    )
                    if observers := tuple(each for each in asked if each is not None):
                        yield RowTask(first_head=head, observers=observers, ordered=ordered)

    def _sampling_tasks(self) -> Iterator[SamplingTask]:
        """Yield those of each order whose n-grams must be hashed at every position."""
        for sampler in self.samplers:
            draws = not key_bits(self.layout, sampler.order)
            for ordered in (True, False):
                asked = (
                    collector.ngram_observer(sampler.order)
                    for collector in self.collectors
                    if collector.ordered == ordered
                )
                observers = tuple(each for each in asked if each is not None)
                drawn = sampler if draws and not ordered else None
                if observers or drawn is not None:
                    yield SamplingTask(
                        hasher=sampler, sampler=drawn, observers=observers, ordered=ordered
                    )


def buffer_bytes(layout: HashLayout, threads: int = 1) -> int:
    """Return the bytes that counting in so many threads needs, besides counters and samplers.

    That is two sets of lists of n-grams, and of each thread: scratch memory, tables, a list of each
    order, and the chunk that it counts.
    """
    shared = 2 * lists_together(layout, threads) * list_bytes(layout)
    own = table_bytes(layout) + list_bytes(layout) + _TOKEN_BYTES * STEP
    return shared + threads * (own + scratch_bytes(layout, threads))


def scratch_bytes(layout: HashLayout, threads: int) -> int:
    """Return the bytes of scratch memory that each thread needs."""
    most = min(lists_together(layout, threads) * LIST_ITEMS, _MOST_DEALT)
    moduli = {modulus for entry in layout.layers for modulus in entry.moduli}
    return 4 * max(*(scratch_items(modulus, most) for modulus in moduli), 2 * STEP, 3 * LIST_ITEMS)
