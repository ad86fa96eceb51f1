"""Runs the counting tasks in threads: each task gets every chunk in order, from any free thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.counters import STEP, Counter, Task
from engram_cli.stats.ngram_buffer import Job
from engram_cli.stats.token_chunk import TokenChunk

_Work: TypeAlias = Callable[[NDArray[np.uint32]], "Sequence[Job] | None"]
_DEPTH = 6  # parts of chunks that wait for the slowest task
_POLL = 0.2  # seconds: how late Ctrl-C may be noticed where waiting cannot be interrupted


class _TaskState:
    """A task, the number of parts it has finished, and the jobs left of the current part."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.done = 0
        self.running = 0
        self.jobs: list[Job] = []


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

    def _next(self) -> tuple[_TaskState, _Work] | None:
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
