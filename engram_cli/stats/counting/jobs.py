"""Small pieces of work that any free thread does, and the queue in which they wait."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Stopped(Exception):
    """Another thread has failed, so this one's work is abandoned."""


class Job(ABC):
    """A piece of work for one thread."""

    __slots__ = ()

    @abstractmethod
    def run(self, scratch: NDArray[np.uint32], queue: JobQueue) -> None:
        """Do it, with the scratch memory of a thread."""

    def done(self) -> Sequence[Job]:
        """Return the jobs that can be done now that this one is done; called under the lock."""
        return ()


class JobQueue:
    """Jobs that wait for a thread. `lock` guards them, and all that they wait for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)  # there is work for one more thread
        self.free = threading.Condition(self.lock)  # there is something that `wait_for` waits for
        self.idle = threading.Condition(self.lock)  # work has been finished
        self.stopped = False
        self._jobs: deque[Job] = deque()
        self._running = 0

    @property
    def busy(self) -> bool:
        """Whether a job waits or is being done; asked under the lock."""
        return bool(self._jobs or self._running)

    def add(self, found: Callable[[], Iterable[Job]]) -> None:
        """Add the jobs that `found` gives under the lock."""
        with self.lock:
            self._extend(found())

    def take(self) -> Job | None:
        """Return a job that the caller must `run`, None if none waits; called under the lock."""
        if not self._jobs:
            return None
        self._running += 1
        return self._jobs.popleft()

    def run(self, job: Job, scratch: NDArray[np.uint32]) -> None:
        """Do a job that was taken, without the lock."""
        job.run(scratch, self)
        with self.lock:
            self._running -= 1
            self._extend(job.done())
            self.free.notify_all()
            if not self.busy:
                self.idle.notify_all()

    def run_all(self, scratch: NDArray[np.uint32]) -> None:
        """Do all jobs in this thread."""
        while True:
            with self.lock:
                job = self.take()
            if job is None:
                return
            self.run(job, scratch)

    def wait_for(self, found: Callable[[], T | None], scratch: NDArray[np.uint32]) -> T:
        """Return what `found` gives under the lock; do jobs while it gives None.

        Raises Stopped.
        """
        while True:
            with self.lock:
                while (value := found()) is None and (job := self.take()) is None:
                    if self.stopped:
                        raise Stopped
                    self.free.wait()
                if value is not None:
                    return value
            assert job is not None
            self.run(job, scratch)

    def stop(self) -> None:
        """Let no thread wait any longer."""
        with self.lock:
            self.stopped = True
            for each in (self.work, self.free, self.idle):
                each.notify_all()

    def _extend(self, jobs: Iterable[Job]) -> None:
        before = len(self._jobs)
        self._jobs.extendleft(jobs)  # those that wait already may wait for these
        if len(self._jobs) > before:
            self.work.notify(len(self._jobs) - before)
            self.free.notify_all()
