"""A courier: rows from host memory to a device without the interpreter.

In: loads, each some row numbers that the device finds, the records they are of, and where these go.
Its thread waits for the numbers, has the crew gather the records into a ring of pinned buffers, and
launches the copies. Out: the records on the device, when the load's mark is passed.
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
from engram_cli.runtime.tiers.crew import kernels
from engram_cli.runtime.tiers.crew.crew import Crew, describe, the_crew

_JOBS = 3  # of a courier that are under way
_PATIENCE = 40  # pauses before whoever waits for a load sleeps


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
    """Records on their way: `host` int32 or int64 [n + 1], once `found` is passed how many row
    numbers, then they; their records go to `target` uint8[n, record_bytes], before `copied`.

    `found` and `copied` are addresses of CUDA events. All is held until `wait` has returned.
    """

    def __init__(
        self, records: Tensor, host: Tensor, target: Tensor, *, found: int, copied: int
    ) -> None:
        self._held = records, host, target
        self.fields = np.zeros(kernels.LOAD, dtype=np.int64)
        describe(self.fields, records, host, target.data_ptr())
        self.fields[kernels.FOUND] = found
        self.fields[kernels.COPIED] = copied
        kernels.address_to(self.fields)

    def drop(self) -> None:
        """Nobody wants it any more; to be waited for all the same."""
        self.fields[kernels.DROPPED] = 1

    def wait(self) -> None:
        """Wait until its copies are launched.

        Raises InputError for rows that have no record, RuntimeError where CUDA fails.
        """
        kernels.await_arrival(self.fields, _PATIENCE)
        if self.fields[kernels.FAILED]:
            code = self.fields[kernels.FAILED]
            raise RuntimeError(f"rows on their way to the device: CUDA error {code}")
        if self.fields[kernels.OUTSIDE]:
            raise InputError(
                f"a row is outside 0..{len(self._held[0]) - 1}", "ask for rows of the table"
            )

    @property
    def rows(self) -> int:
        """How many records travelled, known after `wait`."""
        return 0 if self.fields[kernels.DROPPED] else int(self.fields[kernels.COUNT])

    @property
    def seconds(self) -> tuple[float, float, float]:
        """What the courier waited for row numbers, for gathers, and for copies; after `wait`."""
        finding, gathering, copying = self.fields[kernels.FINDING : kernels.COPYING + 1] / 1e9
        return float(finding), float(gathering), float(copying)


class Courier:
    """One thread, with `ring` uint8[buffers, bytes], pinned, and `events`, one a buffer.

    Copies go to `stream`; without one, as in tests, the driver is given 0 for it and for events.
    `slots` of the crew are given back at the end.
    """

    def __init__(
        self,
        crew: Crew,
        slots: list[int],
        driver: Driver,
        ring: Tensor,
        *,
        stream: torch.cuda.Stream | None = None,
        events: Sequence[torch.cuda.Event] = (),
        device: torch.device,
    ) -> None:
        self.stream = stream
        self._desk = np.zeros(kernels.DESK, dtype=np.int64)
        self._desk[kernels.STREAM] = 0 if stream is None else stream.cuda_stream
        self._desk[kernels.COPY] = driver.copy
        self._desk[kernels.RECORD] = driver.record
        self._desk[kernels.SYNCHRONIZE] = driver.synchronize
        self._desk[kernels.RING] = ring.data_ptr()
        self._desk[kernels.BUFFER_BYTES] = ring.shape[1]
        kernels.open_desk(self._desk)
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=_run,
            args=(crew, slots, self._desk, ring, events, device),
            name="engram-courier",
            daemon=True,
        )
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._desk, self._thread)

    def load(
        self, records: Tensor, host: Tensor, target: Tensor, found: int
    ) -> tuple[Load, torch.cuda.Event]:
        """A load (`Load`) and the event that its copies pass."""
        assert self.stream is not None
        copied = new_event(self.stream)
        return Load(records, host, target, found=found, copied=copied.cuda_event), copied

    def send(self, load: Load) -> None:
        """Have a load fetched, after those sent before."""
        with self._lock:
            kernels.post(self._desk, load.fields.ctypes.data)

    def close(self) -> None:
        """End the thread, when it has done what it was sent."""
        with self._lock:
            self._end()


def _run(
    crew: Crew,
    slots: list[int],
    desk: NDArray[np.int64],
    ring: Tensor,
    events: Sequence[torch.cuda.Event],
    device: torch.device,
) -> None:
    """The thread; `ring` and `events` are held until it ends."""
    addresses = [event.cuda_event for event in events] or [0] * len(ring)
    own, marks = np.array(slots, dtype=np.int64), np.array(addresses, dtype=np.int64)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernels.run_errands(crew.control, desk, own, marks)
    crew.give_slots(slots)


def _end(desk: NDArray[np.int64], thread: threading.Thread) -> None:
    kernels.post(desk, 0)
    if thread is not threading.current_thread():
        thread.join()


def cuda_courier(device: torch.device, buffers: int, size: int) -> Courier | None:
    """A courier to a CUDA device with a ring of `buffers` of `size` bytes.

    None where this process has no crew, or one without free slots, or CUDA's driver is not found.
    """
    crew, driver = the_crew(), None if torch.version.cuda is None else cuda_driver()
    slots = None if crew is None or driver is None else crew.take_slots(min(_JOBS, buffers))
    if crew is None or driver is None or slots is None:
        return None
    ring = torch.empty(buffers, size, dtype=torch.uint8, pin_memory=True)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    events = [new_event(stream) for _ in range(buffers)]
    return Courier(crew, slots, driver, ring, stream=stream, events=events, device=device)


def new_event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event that exists: torch makes it when it is first recorded."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
