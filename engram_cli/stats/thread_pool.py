"""Threads that count: every task is shown every passage in order, by whichever thread is free."""

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
from engram_cli.stats.hits.ngram_buffer import Job
from engram_cli.stats.token_chunk import Passage

_Work: TypeAlias = Callable[[NDArray[np.uint32]], "Sequence[Job] | None"]
_DEPTH = 6  # parts of passages that wait for the slowest task
_POLL = 0.2  # seconds: how late Ctrl-C may be noticed where waiting cannot be interrupted


class _Line:
    """A task, how many parts it is through with, and what is left of the one it is at."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.done = 0
        self.running = 0
        self.jobs: list[Job] = []


class Crew:
    """Used in a `with` block: at its end every passage has been counted, or the error is raised.

    When the block ends by an exception, Ctrl-C among them, the threads stop after what they are at,
    a few milliseconds later.
    """

    def __init__(self, counter: Counter, threads: int) -> None:
        self._counter = counter
        self._lines = [_Line(task) for task in counter.tasks]
        self._parts: deque[Passage | None] = deque()  # None: settle
        self._first = 0  # the number of the first of them
        self._change = threading.Condition()
        self._stopped = False
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, name="engram-count", daemon=True)
            for _ in range(max(threads, 1))
        ]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def push(self, passage: Passage) -> None:
        """Hand over a passage; waits while a task is far behind."""
        for begin in range(0, len(passage), STEP):
            self._put(passage.part(begin, min(begin + STEP, len(passage))))

    def drain(self) -> None:
        """Wait until every passage handed over has been counted, and nothing is pending."""
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

    def _put(self, part: Passage | None) -> None:
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
                line, work = found
                self._through(line, work(scratch) or ())
        except BaseException as error:
            with self._change:
                self._errors.append(error)
                self._stopped = True
                self._change.notify_all()

    def _next(self) -> tuple[_Line, _Work] | None:
        """Wait for something to do: for jobs first, then for the task that is furthest behind; None
        at the end."""
        with self._change:
            while not self._stopped:
                for line in self._lines:
                    if line.jobs:
                        line.running += 1
                        return line, line.jobs.pop()
                end = self._first + len(self._parts)
                idle = [line for line in self._lines if not line.running and line.done < end]
                if idle:
                    line = min(idle, key=lambda line: line.done)
                    line.running = 1
                    return line, partial(self._show, line)
                self._change.wait()
        return None

    def _show(self, line: _Line, scratch: NDArray[np.uint32]) -> Sequence[Job]:
        """Show a task its next part."""
        part = self._parts[line.done - self._first]
        return line.task.settle() if part is None else line.task.push(part, scratch)

    def _through(self, line: _Line, jobs: Sequence[Job]) -> None:
        """Note that a piece of work is done and has left `jobs` to do."""
        with self._change:
            line.running -= 1
            line.jobs += jobs
            if not (line.running or line.jobs):
                line.done += 1
                while self._parts and all(line.done > self._first for line in self._lines):
                    self._parts.popleft()
                    self._first += 1
            self._change.notify_all()
