"""A thread that copies rows from host memory to a device without the interpreter.

It takes loads from a queue. A load has row numbers that the device computes, the table of records,
and the device memory for them. The thread waits for the row numbers, has the `GatherPool` gather
the records into a ring of pinned buffers, and launches the copies. A CUDA event of the load happens
after the last copy.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.runtime.tiers.host_gather import kernels
from engram_cli.runtime.tiers.host_gather.gather_pool import (
    GatherPool,
    describe,
    shared_gather_pool,
)

_JOBS = 3  # gathers that a copy thread has under way
_SPINS = 40  # pauses before a thread that waits for a load sleeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """Addresses of functions: `copy` to the device, `record` an event, `synchronize` with one."""

    copy: int
    record: int
    synchronize: int


@cache
def cuda_driver() -> Driver | None:
    """CUDA's driver, None where its library cannot be found."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        names = ("cuMemcpyHtoDAsync_v2", "cuEventRecord", "cuEventSynchronize")
        found = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names]
    except (OSError, AttributeError):
        return None
    copy, record, synchronize = (address or 0 for address in found)
    return Driver(copy=copy, record=record, synchronize=synchronize)


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
        self.fields = np.zeros(kernels.LOAD, dtype=np.int64)
        describe(self.fields, records, host, target.data_ptr())
        self.fields[kernels.FOUND] = found
        self.fields[kernels.COPIED] = copied
        kernels.init_load(self.fields)

    def drop(self) -> None:
        """Mark the load as not needed; it must still be waited for."""
        self.fields[kernels.DROPPED] = 1

    def wait(self) -> None:
        """Wait until its copies are launched.

        Raises InputError for rows that have no record, RuntimeError where CUDA fails.
        """
        kernels.wait_for_load(self.fields, _SPINS)
        if self.fields[kernels.FAILED]:
            code = self.fields[kernels.FAILED]
            raise RuntimeError(f"rows on their way to the device: CUDA error {code}")
        if self.fields[kernels.OUTSIDE]:
            raise InputError(
                f"a row is outside 0..{len(self._held[0]) - 1}", "ask for rows of the table"
            )

    @property
    def rows(self) -> int:
        """How many records were copied, known after `wait`."""
        return 0 if self.fields[kernels.DROPPED] else int(self.fields[kernels.COUNT])

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Seconds spent waiting for row numbers, gathers and copies, known after `wait`."""
        finding, gathering, copying = self.fields[kernels.FINDING : kernels.COPYING + 1] / 1e9
        return float(finding), float(gathering), float(copying)


class CopyThread:
    """One thread, with `ring` uint8[buffers, bytes], pinned, and `events`, one a buffer.

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
        self._queue[kernels.STREAM] = 0 if stream is None else stream.cuda_stream
        self._queue[kernels.COPY] = driver.copy
        self._queue[kernels.RECORD] = driver.record
        self._queue[kernels.SYNCHRONIZE] = driver.synchronize
        self._queue[kernels.RING] = ring.data_ptr()
        self._queue[kernels.BUFFER_BYTES] = ring.shape[1]
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
