"""Threads that count: each takes the next chunk, hashes it and counts it.

Chunks are made in the threads too, so that the thread that reads the corpus only hands them out.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from engram_cli.errors import EngramError
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.stats.counting import counters
from engram_cli.stats.counting.counters import Counter, Lane, Task
from engram_cli.stats.counting.jobs import Job, Stopped
from engram_cli.stats.counting.token_chunk import TokenChunk

MOST_THREADS = 64  # one thread reads, and gives no more of them work
_POLL = 0.2  # seconds: how late Ctrl-C may be noticed where waiting cannot be interrupted

Make: TypeAlias = Callable[[StreamHasher], TokenChunk]
"""Hashes a chunk, by a hasher that may be in any state. Raises TokenIdError."""


@dataclass(slots=True, eq=False)
class _Part:
    """A chunk to be counted: `number` by its place in the corpus."""

    number: int
    make: Make
    chunk: TokenChunk | None = None  # once it is made
    counted: bool = False


@dataclass(slots=True, eq=False)
class _TaskState:
    """An ordered task, and the number of parts it has finished."""

    task: Task
    done: int = 0
    running: bool = False

    @property
    def number(self) -> int:
        """The number of the part at hand."""
        return self.done


class ThreadPool:
    """Use it in a `with` block: at its end every chunk is counted, or the error is raised.

    Of several errors, that of the first chunk in the corpus is raised. When an exception ends the
    block, Ctrl-C included, each thread finishes its current work first, which takes a few
    milliseconds.
    """

    def __init__(self, counter: Counter, threads: int) -> None:
        self._counter, self._queue = counter, counter.queue
        self._states = [_TaskState(task) for task in counter.ordered]
        self._parts: deque[_Part] = deque()
        self._first = self._taken = 0  # the numbers of the first part, and of the next to take
        self._errors: list[tuple[int, BaseException]] = []
        count = min(max(threads, 1), MOST_THREADS)
        self._ahead = 2 + count // 2  # chunks that wait for a thread
        # Ordered tasks keep chunks until the slowest of them has seen them.
        self._depth = count + self._ahead if self._states else sys.maxsize
        self._threads = [
            threading.Thread(target=self._run, name=f"engram-count-{at}", daemon=True)
            for at in range(count)
        ]

    def __enter__(self) -> ThreadPool:
        self._queue.stopped = False
        for thread in self._threads:
            thread.start()
        return self

    def push(self, make: Make) -> None:
        """Hand over a chunk; waits while others wait."""
        self._wait(self._has_room)
        with self._queue.lock:
            self._parts.append(_Part(self._first + len(self._parts), make))
            self._queue.work.notify()

    def drain(self) -> None:
        """Wait until every chunk is counted and all tables and lists are empty."""
        self._wait(lambda: not self._parts)
        self._counter.empty_tables()
        self._wait(lambda: not self._queue.busy)
        while self._counter.count_rest():
            self._wait(lambda: not self._queue.busy)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.drain()
            elif issubclass(kind, EngramError) and not self._errors:
                self._wait(lambda: not self._parts)  # something earlier may be wrong too
        finally:
            self._end()
            self._counter.release()

    def _end(self) -> None:
        self._queue.stop()
        for thread in self._threads:
            thread.join()

    def _has_room(self) -> bool:
        waiting = self._first + len(self._parts) - self._taken
        return waiting < self._ahead and len(self._parts) < self._depth

    def _wait(self, enough: Callable[[], bool]) -> None:
        with self._queue.lock:
            while not (self._errors or enough()):
                self._queue.idle.wait(_POLL)
            if not self._errors:
                return
        self._end()  # a thread may yet fail at an earlier chunk
        raise min(self._errors, key=lambda each: each[0])[1]

    def _run(self) -> None:
        found: Job | _Part | _TaskState | None = None
        try:
            lane, hasher = self._counter.lane(), StreamHasher(self._counter.layout)
            while (found := self._next()) is not None:
                if isinstance(found, Job):
                    self._queue.run(found, lane.scratch)
                elif isinstance(found, _Part):
                    self._count(found, lane, hasher)
                else:
                    self._push_next(found, lane)
        except Stopped:
            return
        except BaseException as error:
            with self._queue.lock:
                at = getattr(found, "number", self._first - 1)
                self._errors.append((at, error))
            self._queue.stop()

    def _next(self) -> Job | _Part | _TaskState | None:
        """Return the next work: jobs first, then the ordered task that is furthest behind, then the
        next part; None at the end."""
        queue = self._queue
        with queue.lock:
            while not queue.stopped:
                if (job := queue.take()) is not None:
                    return job
                ready = [state for state in self._states if self._ready(state)]
                if ready:
                    state = min(ready, key=lambda state: state.done)
                    state.running = True
                    return state
                if self._taken < self._first + len(self._parts):
                    self._taken += 1
                    return self._parts[self._taken - 1 - self._first]
                queue.work.wait()
        return None

    def _ready(self, state: _TaskState) -> bool:
        place = state.done - self._first
        made = place < len(self._parts) and self._parts[place].chunk is not None
        return made and not state.running

    def _count(self, part: _Part, lane: Lane, hasher: StreamHasher) -> None:
        """Make a part, and do all with it that needs no order."""
        chunk = part.make(hasher)
        del part.make  # and the ids
        if self._states:
            with self._queue.lock:
                part.chunk = chunk
                self._queue.work.notify_all()
        for begin in range(0, len(chunk), counters.STEP):
            end = min(begin + counters.STEP, len(chunk))
            self._counter.count(chunk.part(begin, end), lane)
        with self._queue.lock:
            part.counted = True
            self._retire()

    def _push_next(self, state: _TaskState, lane: Lane) -> None:
        """Give an ordered task its next part."""
        chunk = self._parts[state.done - self._first].chunk
        assert chunk is not None
        for begin in range(0, len(chunk), counters.STEP):
            end = min(begin + counters.STEP, len(chunk))
            state.task.push(chunk.part(begin, end), lane.scratch)
        with self._queue.lock:
            state.running = False
            state.done += 1
            self._retire()
            self._queue.work.notify_all()

    def _retire(self) -> None:
        """Drop the first parts that are counted and seen by all tasks."""
        while (
            self._parts
            and self._parts[0].counted
            and all(state.done > self._first for state in self._states)
        ):
            self._parts.popleft()
            self._first += 1
        self._queue.idle.notify_all()
