"""The crew of this process: threads that gather records out of host memory for whoever asks.

In: a table of records, row numbers, and where the records go. Threads begin with the first request
and wait awake for a moment after each, so that the next one need not wake them.
"""

from __future__ import annotations

import os
import sys
import threading
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.runtime.tiers.crew import kernels

_MOST = 16  # threads: so many fill the bus of one GPU
_OTHERS = 3  # cores: for the courier, for whoever waits, and for CUDA's threads
_SPINS = 2000  # pauses before a thread sleeps: about 0.1 ms
_PATIENCE = 40  # pauses before whoever waits for a job sleeps
_UNIT = 64  # rows
_AHEAD = 8  # rows whose cache lines are asked for early
_LEFT = 2  # slots that are for short jobs alone


class Crew:
    """`threads` threads, for `kernels.SLOTS` jobs at a time."""

    def __init__(self, threads: int) -> None:
        self.control = np.zeros(kernels.BEDS + threads * kernels.LINE, dtype=np.int64)
        self.control[kernels.SPINS] = _SPINS
        self.control[kernels.PATIENCE] = _PATIENCE
        self.control[kernels.UNIT] = _UNIT
        self.control[kernels.AHEAD] = _AHEAD
        self.control[kernels.THREADS] = threads
        kernels.prepare(self.control)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._slots = SimpleQueue[int]()
        for number in range(kernels.SLOTS):
            self._slots.put(kernels.JOBS + number * kernels.SLOT)

    def take_slots(self, count: int) -> list[int] | None:
        """Free slots for jobs, and threads that serve them; None where some must be left."""
        with self._lock:
            self._start()
            if self._slots.qsize() < count + _LEFT:
                return None
            return [self._slots.get() for _ in range(count)]

    def give_slots(self, slots: list[int]) -> None:
        """Give back what was taken."""
        for slot in slots:
            self._slots.put(slot)

    def gather(self, records: Tensor, rows: Tensor, out: Tensor) -> int:
        """Write `records[rows]` to `out` uint8[n, record_bytes]; how many rows have no record.

        `rows` int64 or int32 [n]. All in host memory and contiguous; records that overlap `out`
        are an error that nobody finds.
        """
        if not len(rows):
            return 0
        job = np.zeros(kernels.TARGET + 1, dtype=np.int64)
        describe(job, records, rows, out.data_ptr())
        with self._lock:
            self._start()
        slot = self._slots.get()  # waits where all are taken
        kernels.submit(self.control, slot, job)
        wrong = int(kernels.finish(self.control, slot))
        self._slots.put(slot)
        return wrong

    def close(self) -> None:
        """End the threads; nothing may be asked for any more."""
        kernels.stop(self.control)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        for number in range(len(self._threads), int(self.control[kernels.THREADS])):
            thread = threading.Thread(
                target=kernels.serve,
                args=(self.control, number),
                name=f"engram-gather-{number}",
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)


def describe(job: NDArray[np.int64], records: Tensor, rows: Tensor, target: int) -> None:
    """Fill in the fields of a job, as `kernels` names them; `target` is an address."""
    job[kernels.SOURCE] = records.data_ptr()
    job[kernels.STRIDE] = records.shape[1]
    job[kernels.HEIGHT] = len(records)
    job[kernels.ROWS] = rows.data_ptr()
    job[kernels.ROW_BYTES] = rows.element_size()
    job[kernels.COUNT] = len(rows)
    job[kernels.TARGET] = target


_crew: Crew | None = None
_making = threading.Lock()


def the_crew() -> Crew | None:
    """The crew of this process, made when it is first needed; None where there is none."""
    global _crew
    if sys.platform != "linux":
        return None
    with _making:
        if _crew is None:
            _crew = Crew(max(1, min(_MOST, len(os.sched_getaffinity(0)) - _OTHERS)))
        return _crew


def _forget() -> None:
    global _crew, _making
    _crew, _making = None, threading.Lock()


if sys.platform == "linux":
    os.register_at_fork(after_in_child=_forget)  # a child has none of the threads
