"""Counts rows and samples n-grams of a layout: the counters, the tasks that fill them, and threads.

Each task gets every chunk in order, from any free thread.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import LayerPlan, plan_layer
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import Collector, NgramObserver, RowObserver
from engram_cli.stats.counting.ngram_buffer import (
    LEAST_ITEMS,
    MOST_BYTES,
    MOST_ITEMS,
    Columns,
    DirectCounter,
    Job,
    NgramBuffer,
    key_bits,
    list_bytes,
    make_buffers,
    scratch_items,
)
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.sampling.distinct import Sampler
from engram_cli.stats.state import State, nested, numbered, part_of, take_into
from engram_cli.stats.totals import Counts

STEP = 2**18  # tokens that a task takes at a time: about a millisecond
_HASHED = 2**16  # n-grams hashed at a time: half a megabyte, which stays in the L2 cache
_DEPTH = 6  # parts of chunks that wait for the slowest task
_POLL = 0.2  # seconds: how late Ctrl-C may be noticed where waiting cannot be interrupted


class Task(ABC):
    """Takes the whole corpus, part after part, from one thread at a time."""

    __slots__ = ()

    @abstractmethod
    def push(self, chunk: TokenChunk, scratch: NDArray[np.uint32]) -> Sequence[Job]:
        """Take the next chunk, at most `STEP` tokens. The jobs it returns may run in several
        threads, and must be done before the next push."""

    def settle(self) -> Sequence[Job]:
        """Return the jobs left until all that was pushed is counted."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnTask(Task):
    """Counts the rows of one order; `observers` get those of the first head of a layer."""

    buffer: NgramBuffer | DirectCounter
    observers: tuple[tuple[LayerPlan, tuple[RowObserver, ...]], ...]

    def push(self, chunk: TokenChunk, scratch: NDArray[np.uint32]) -> Sequence[Job]:
        """Take the n-grams of a chunk."""
        self.buffer.push(chunk.window)
        rows = scratch[: len(chunk)]
        for first_head, observers in self.observers:
            first_head.columns(chunk.window.tokens, chunk.window.seen, rows[None])
            for observer in observers:
                observer.push_rows(rows, chunk)
        return self.buffer.jobs() if self.buffer.room < STEP else ()

    def settle(self) -> Sequence[Job]:
        """Return the jobs that count what is in the buffer."""
        return self.buffer.last_jobs()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectorTask(Task):
    """Gives every chunk to a collector."""

    collector: Collector

    def push(self, chunk: TokenChunk, scratch: NDArray[np.uint32]) -> Sequence[Job]:
        """Push the chunk."""
        self.collector.push(chunk)
        return ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplingTask(Task):
    """Hashes the n-grams of an order for its sample and `observers`.

    `draws`: the sampler gets them here, and not from an `NgramBuffer`.
    """

    sampler: Sampler
    draws: bool
    observers: tuple[NgramObserver, ...]

    def push(self, chunk: TokenChunk, scratch: NDArray[np.uint32]) -> Sequence[Job]:
        """Draw from a chunk."""
        for begin in range(0, len(chunk), _HASHED):
            part = chunk.part(begin, min(begin + _HASHED, len(chunk)))
            hashes = scratch[: 2 * len(part)].view(np.uint64)
            self.sampler.hash(part.window, hashes)
            if self.draws:
                self.sampler.push_hashes(hashes, part.window)
            for observer in self.observers:
                observer.push_ngrams(hashes, part)
        return ()


class Counter:
    """The counters and samplers of a layout, and the tasks that fill them.

    No two tasks write to the same counters, sampler or collector.
    """

    def __init__(
        self, layout: HashLayout, sample_size: int, collectors: Sequence[Collector] = ()
    ) -> None:
        self.layout = layout
        self.hits = {e.layer: np.zeros(e.rows, dtype=np.uint32) for e in layout.layers}
        self.samplers = tuple(
            Sampler(order, layout.filler_id, sample_size) for order in layout.orders
        )
        self.collectors = tuple(collectors)
        self.tasks: tuple[Task, ...] = (
            *self._column_tasks(),
            *self._sampling_tasks(),
            *(CollectorTask(collector=collector) for collector in self.collectors),
        )

    def scratch(self) -> NDArray[np.uint32]:
        """Return the scratch memory of a thread; pages that are not used take no memory."""
        return np.empty(scratch_bytes(self.layout) // 4, dtype=np.uint32)

    def push(self, chunk: TokenChunk, scratch: NDArray[np.uint32]) -> None:
        """Count at most `STEP` tokens in this thread."""
        for task in self.tasks:
            for job in task.push(chunk, scratch):
                job(scratch)

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

    def settle(self) -> None:
        """Count in this thread what is still in the buffers."""
        scratch: NDArray[np.uint32] | None = None
        for task in self.tasks:
            for job in task.settle():
                scratch = self.scratch() if scratch is None else scratch
                job(scratch)

    def _sampling_tasks(self) -> Iterator[SamplingTask]:
        """Yield one for each order whose n-grams must be hashed at every position."""
        for sampler in self.samplers:
            asked = (c.ngram_observer(sampler.order) for c in self.collectors)
            observers = tuple(w for w in asked if w is not None)
            draws = not key_bits(self.layout, sampler.order)
            if draws or observers:
                yield SamplingTask(sampler=sampler, draws=draws, observers=observers)

    def _column_tasks(self) -> Iterator[ColumnTask]:
        """Yield one for each order, or one for each layer and order."""
        layout, items = self.layout, _items(self.layout)
        plans = {entry.layer: plan_layer(layout, entry) for entry in layout.layers}
        for index, sampler in enumerate(self.samplers):
            layers = {
                layer: Columns(plan=plan, order=index, hits=self.hits[layer])
                for layer, plan in plans.items()
            }
            observers: dict[Columns, tuple[RowObserver, ...]] = {}
            for layer, columns in layers.items():
                asked = (c.row_observer(layer, sampler.order) for c in self.collectors)
                observers[columns] = tuple(w for w in asked if w is not None)
            bits = key_bits(layout, sampler.order)
            for buffer in make_buffers(tuple(observers), bits, items, sampler):
                observed = (columns for columns in buffer.layers if observers[columns])
                yield ColumnTask(
                    buffer=buffer,
                    observers=tuple((each.first_head(), observers[each]) for each in observed),
                )


@dataclass(slots=True, eq=False)
class _TaskState:
    """A task, the number of parts it has finished, and the jobs left of the current part."""

    task: Task
    done: int = 0
    running: int = 0
    jobs: list[Job] = field(default_factory=list)


class ThreadPool:
    """Use it in a `with` block: at its end every chunk is counted, or the error is raised.

    When an exception ends the block, Ctrl-C included, each thread finishes its current job first,
    which takes a few milliseconds.
    """

    def __init__(self, counter: Counter, threads: int) -> None:
        self._counter = counter
        self._states = [_TaskState(task) for task in counter.tasks]
        self._parts: deque[TokenChunk | None] = deque()  # None: settle
        self._first = 0  # the number of the first of them
        self._change = threading.Condition()
        self._stopped = False
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, name="engram-count", daemon=True)
            for _ in range(max(threads, 1))
        ]

    def __enter__(self) -> ThreadPool:
        for thread in self._threads:
            thread.start()
        return self

    def push(self, chunk: TokenChunk) -> None:
        """Hand over a chunk; waits while a task is far behind."""
        for begin in range(0, len(chunk), STEP):
            self._put(chunk.part(begin, min(begin + STEP, len(chunk))))

    def drain(self) -> None:
        """Wait until every chunk is counted and all buffers are empty."""
        self._put(None)
        self._wait(lambda: not self._parts)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            with self._change:
                self._stopped = True
                self._change.notify_all()
            for thread in self._threads:
                thread.join()

    def _put(self, part: TokenChunk | None) -> None:
        self._wait(lambda: len(self._parts) < _DEPTH)
        with self._change:
            self._parts.append(part)
            self._change.notify_all()

    def _wait(self, enough: Callable[[], bool]) -> None:
        with self._change:
            while not (self._errors or enough()):
                self._change.wait(_POLL)
            if self._errors:
                raise self._errors[0]

    def _run(self) -> None:
        try:
            scratch = self._counter.scratch()
            while (found := self._next()) is not None:
                state, work = found
                self._finish(state, work(scratch) or ())
        except BaseException as error:
            with self._change:
                self._errors.append(error)
                self._stopped = True
                self._change.notify_all()

    def _next(
        self,
    ) -> tuple[_TaskState, Callable[[NDArray[np.uint32]], Sequence[Job] | None]] | None:
        """Return the next work: jobs first, then the task that is furthest behind; None at the
        end."""
        with self._change:
            while not self._stopped:
                for state in self._states:
                    if state.jobs:
                        state.running += 1
                        return state, state.jobs.pop()
                end = self._first + len(self._parts)
                idle = [state for state in self._states if not state.running and state.done < end]
                if idle:
                    state = min(idle, key=lambda state: state.done)
                    state.running = 1
                    return state, partial(self._push_next, state)
                self._change.wait()
        return None

    def _push_next(self, state: _TaskState, scratch: NDArray[np.uint32]) -> Sequence[Job]:
        """Give a task its next part."""
        part = self._parts[state.done - self._first]
        return state.task.settle() if part is None else state.task.push(part, scratch)

    def _finish(self, state: _TaskState, jobs: Sequence[Job]) -> None:
        """Record that a piece of work is done and has left `jobs`."""
        with self._change:
            state.running -= 1
            state.jobs += jobs
            if not (state.running or state.jobs):
                state.done += 1
                while self._parts and all(state.done > self._first for state in self._states):
                    self._parts.popleft()
                    self._first += 1
            self._change.notify_all()


def buffer_bytes(layout: HashLayout) -> int:
    """Return the bytes of the n-gram buffers of all layers and orders."""
    return list_bytes(layout, _items(layout))


def scratch_bytes(layout: HashLayout) -> int:
    """Return the bytes of scratch memory that each thread needs."""
    items = max(scratch_items(modulus, _items(layout)) for modulus in _moduli(layout))
    return 4 * max(items, 2 * STEP)


def _items(layout: HashLayout) -> int:
    """Return the length of the n-gram buffers.

    One n-gram for four rows of a column is worth counting, if the buffers do not take too much
    together.
    """
    one = list_bytes(layout, 1) - list_bytes(layout, 0)
    wanted = min(max(_moduli(layout)) // 4, MOST_ITEMS, MOST_BYTES // one)
    return max(wanted, LEAST_ITEMS) + STEP


def _moduli(layout: HashLayout) -> set[int]:
    return {modulus for entry in layout.layers for modulus in entry.moduli}
