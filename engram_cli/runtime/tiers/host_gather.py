"""Threads that gather records from host memory without the interpreter, and copy them to a GPU.

The `GatherPool` serves all callers of this process: they give a table of records, row numbers, and
the memory to write to. Its threads start with the first request. After each request they spin for
a moment before they sleep, so that the next request need not wake them.

A `CopyThread` takes loads from a queue. A load has row numbers that the device computes, the table
of records, and the device memory for them. The thread waits for the row numbers, has the pool
gather the records into a ring of pinned buffers, and launches the copies. A CUDA event of the load
happens after the last copy.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.runtime.tiers import host_gather_kernels as kernels

_MOST = 16  # threads; so many saturate the bus of one GPU
_OTHERS = 3  # cores left for the copy thread, the waiting caller, and CUDA's threads
_SPINS = 2000  # pauses before a thread sleeps: about 0.1 ms
_CALLER_SPINS = 40  # pauses before a thread that waits for a job sleeps
_UNIT = 64  # rows that a thread takes at once
_AHEAD = 8  # rows whose cache lines are prefetched
_LEFT = 2  # slots kept for `GatherPool.gather`


class GatherPool:
    """Gathers records with `threads` threads, for `kernels.SLOTS` jobs at a time."""

    def __init__(self, threads: int) -> None:
        self.control = np.zeros(kernels.SLEEP_SLOTS + threads * kernels.LINE, dtype=np.int64)
        settings = (_SPINS, _CALLER_SPINS, _UNIT, _AHEAD, threads)
        self.control[kernels.SPINS : kernels.THREADS + 1] = settings
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
        job = _fields(kernels.TARGET + 1, records, rows, out)
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


def _fields(size: int, records: Tensor, rows: Tensor, target: Tensor) -> NDArray[np.int64]:
    """Return a job of `size` words: its fields are SOURCE to TARGET of `kernels`."""
    job = np.zeros(size, dtype=np.int64)
    table = (records.data_ptr(), records.shape[1], len(records))
    asked = (rows.data_ptr(), rows.element_size(), len(rows))
    job[kernels.SOURCE : kernels.TARGET + 1] = (*table, *asked, target.data_ptr())
    return job


_shared: GatherPool | None = None
_shared_lock = threading.Lock()


def shared_gather_pool() -> GatherPool | None:
    """Return the pool of this process, made when first needed; None on other systems than Linux."""
    global _shared
    if sys.platform != "linux":
        return None
    with _shared_lock:
        if _shared is None:
            _shared = GatherPool(max(1, min(_MOST, len(os.sched_getaffinity(0)) - _OTHERS)))
        return _shared


def _forget() -> None:
    """Forget the pool in a child process, which has none of its threads."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


if sys.platform == "linux":
    os.register_at_fork(after_in_child=_forget)


_JOBS = 3  # gathers that a copy thread has under way
_LOAD_SPINS = 40  # pauses before a thread that waits for a load sleeps


class Driver(NamedTuple):
    """Addresses of functions: `copy` to the device, `record` an event, `synchronize` with one."""

    copy: int
    record: int
    synchronize: int


@cache
def cuda_driver() -> Driver | None:
    """Return CUDA's driver, None where its library cannot be found."""
    names = ("cuMemcpyHtoDAsync_v2", "cuEventRecord", "cuEventSynchronize")
    try:
        functions = [getattr(ctypes.CDLL("libcuda.so.1"), name) for name in names]
    except (OSError, AttributeError):
        return None
    return Driver(*(ctypes.cast(each, ctypes.c_void_p).value or 0 for each in functions))


class Load:
    """Records to copy to a device.

    `host` int32 or int64 [n + 1] is valid after the event `found`: the count of row numbers, then
    the row numbers. `target` uint8[n, record_bytes] has the records after the event `copied`.
    `found` and `copied` are addresses of CUDA events. All must exist until `wait` has returned.
    """

    def __init__(
        self, records: Tensor, host: Tensor, target: Tensor, *, found: int, copied: int
    ) -> None:
        self._held = records, host, target
        self.fields = _fields(kernels.LOAD, records, host, target)
        self.fields[[kernels.FOUND, kernels.COPIED]] = found, copied
        kernels.init_load(self.fields)

    def drop(self) -> None:
        """Mark the load as not needed; it must still be waited for."""
        self.fields[kernels.DROPPED] = 1

    def wait(self) -> None:
        """Wait until its copies are launched.

        Raises InputError for rows that have no record, RuntimeError where CUDA fails.
        """
        kernels.wait_for_load(self.fields, _LOAD_SPINS)
        if self.fields[kernels.FAILED]:
            code = self.fields[kernels.FAILED]
            raise RuntimeError(f"rows on their way to the device: CUDA error {code}")
        if self.fields[kernels.OUTSIDE]:
            raise InputError(
                f"a row is outside 0..{len(self._held[0]) - 1}", "ask for rows of the table"
            )

    @property
    def rows(self) -> int:
        """Return how many records were copied, known after `wait`."""
        return 0 if self.fields[kernels.DROPPED] else int(self.fields[kernels.COUNT])

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Return seconds of waiting for row numbers, gathers and copies, known after `wait`."""
        finding, gathering, copying = self.fields[kernels.FINDING : kernels.COPYING + 1] / 1e9
        return float(finding), float(gathering), float(copying)


class CopyThread:
    """Copies loads with one thread and `ring` uint8[buffers, bytes], pinned, an event a buffer.

    Copies go to `stream`; without one, as in tests, the driver gets 0 for it and for events. The
    `slots` of the pool are given back at the end.
    """

    def __init__(
        self,
        pool: GatherPool,
        slots: list[int],
        driver: Driver,
        ring: Tensor,
        *,
        stream: torch.cuda.Stream | None = None,
        events: Sequence[torch.cuda.Event] = (),
        device: torch.device,
    ) -> None:
        self.stream = stream
        self._queue = np.zeros(kernels.QUEUE, dtype=np.int64)
        self._queue[: kernels.BUFFER_BYTES + 1] = (
            0 if stream is None else stream.cuda_stream,
            *(driver.copy, driver.record, driver.synchronize),
            *(ring.data_ptr(), ring.shape[1]),
        )
        kernels.init_queue(self._queue)
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=_run,
            args=(pool, slots, self._queue, ring, events, device),
            name="engram-copy",
            daemon=True,
        )
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._queue, self._thread)

    def load(
        self, records: Tensor, host: Tensor, target: Tensor, found: int
    ) -> tuple[Load, torch.cuda.Event]:
        """Return a new `Load` and the event that happens after its copies."""
        assert self.stream is not None
        copied = new_event(self.stream)
        return Load(records, host, target, found=found, copied=copied.cuda_event), copied

    def send(self, load: Load) -> None:
        """Append a load to the queue."""
        with self._lock:
            kernels.post(self._queue, load.fields.ctypes.data)

    def close(self) -> None:
        """End the thread after the loads in its queue."""
        with self._lock:
            self._end()


def _run(
    pool: GatherPool,
    slots: list[int],
    queue: NDArray[np.int64],
    ring: Tensor,
    events: Sequence[torch.cuda.Event],
    device: torch.device,
) -> None:
    """Run the thread; `ring` and `events` exist until it ends."""
    addresses = [event.cuda_event for event in events] or [0] * len(ring)
    slots_array, events_array = (np.array(each, dtype=np.int64) for each in (slots, addresses))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernels.run_queue(pool.control, queue, slots_array, events_array)
    pool.give_slots(slots)


def _end(queue: NDArray[np.int64], thread: threading.Thread) -> None:
    kernels.post(queue, 0)
    if thread is not threading.current_thread():
        thread.join()


def cuda_copy_thread(device: torch.device, buffers: int, size: int) -> CopyThread | None:
    """Start a copy thread to a CUDA device with a ring of `buffers` of `size` bytes.

    None where this process has no pool, the pool has no free slots, or CUDA's driver is not found.
    """
    pool, driver = shared_gather_pool(), None if torch.version.cuda is None else cuda_driver()
    slots = None if pool is None or driver is None else pool.take_slots(min(_JOBS, buffers))
    if pool is None or driver is None or slots is None:
        return None
    ring = torch.empty(buffers, size, dtype=torch.uint8, pin_memory=True)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    events = [new_event(stream) for _ in range(buffers)]
    return CopyThread(pool, slots, driver, ring, stream=stream, events=events, device=device)


def new_event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """Return a recorded event: torch creates CUDA's event only when it is first recorded."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
