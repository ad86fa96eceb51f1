"""The threads of this process that gather records from host memory, for all callers.

A caller gives a table of records, row numbers, and the memory to write to. Threads start with the
first request. After each request they spin for a moment before they sleep, so that the next request
need not wake them.
"""

from __future__ import annotations

import os
import sys
import threading
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.runtime.tiers.host_gather import kernels

_MOST = 16  # threads; so many saturate the bus of one GPU
_OTHERS = 3  # cores left for the copy thread, the waiting caller, and CUDA's threads
_SPINS = 2000  # pauses before a thread sleeps: about 0.1 ms
_CALLER_SPINS = 40  # pauses before a thread that waits for a job sleeps
_UNIT = 64  # rows that a thread takes at once
_AHEAD = 8  # rows whose cache lines are prefetched
_LEFT = 2  # slots kept for `GatherPool.gather`


class GatherPool:
    """`threads` threads, for `kernels.SLOTS` jobs at a time."""

    def __init__(self, threads: int) -> None:
        self.control = np.zeros(kernels.SLEEP_SLOTS + threads * kernels.LINE, dtype=np.int64)
        self.control[kernels.SPINS] = _SPINS
        self.control[kernels.CALLER_SPINS] = _CALLER_SPINS
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
        """Take free slots for jobs, and start the threads; None where too few are free."""
        with self._lock:
            self._start()
            if self._slots.qsize() < count + _LEFT:
                return None
            return [self._slots.get() for _ in range(count)]

    def give_slots(self, slots: list[int]) -> None:
        """Give back slots that were taken."""
        for slot in slots:
            self._slots.put(slot)

    def gather(self, records: Tensor, rows: Tensor, out: Tensor) -> int:
        """Write `records[rows]` to `out` uint8[n, record_bytes]; return how many rows are outside.

        `rows` int64 or int32 [n]. All are in host memory and contiguous. `out` must not overlap
        `records`, which is not checked.
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
        """End the threads; `gather` may not be called afterwards."""
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


_crew: GatherPool | None = None
_making = threading.Lock()


def shared_gather_pool() -> GatherPool | None:
    """Return the pool of this process, made when first needed; None on other systems than Linux."""
    global _crew
    if sys.platform != "linux":
        return None
    with _making:
        if _crew is None:
            _crew = GatherPool(max(1, min(_MOST, len(os.sched_getaffinity(0)) - _OTHERS)))
        return _crew


def _forget() -> None:
    global _crew, _making
    _crew, _making = None, threading.Lock()


if sys.platform == "linux":
    os.register_at_fork(after_in_child=_forget)  # a child has none of the threads
