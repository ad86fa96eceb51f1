"""Rows from host memory to the device without the interpreter: gathered and copied by the crew.

In: records in host memory, row numbers, a ring of pinned buffers. Out: the records on the device,
when the copies' stream has done what it was given.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.runtime.tiers.crew import kernels
from engram_cli.runtime.tiers.crew.crew import Crew, describe, the_crew

_JOBS = 3  # of a carrier that are under way


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


class Carrier:
    """Copies through `ring` uint8[buffers, bytes], pinned, on the stream of address `stream`.

    `events` are addresses of CUDA events, one a buffer. For one thread.
    """

    def __init__(
        self, crew: Crew, driver: Driver, ring: Tensor, events: list[int], stream: int
    ) -> None:
        self._crew, self._ring = crew, ring
        self._events = np.array(events, dtype=np.int64)
        self._load = np.zeros(kernels.LOAD, dtype=np.int64)
        self._load[kernels.STREAM] = stream
        self._load[kernels.COPY] = driver.copy
        self._load[kernels.RECORD] = driver.record
        self._load[kernels.SYNCHRONIZE] = driver.synchronize
        self._load[kernels.RING] = ring.data_ptr()
        self._load[kernels.BUFFER_BYTES] = ring.shape[1]

    def carry(self, records: Tensor, rows: Tensor, target: Tensor) -> tuple[float, float]:
        """Launch all copies of `records[rows]` to `target`; seconds waited: gathers, copies.

        Raises InputError for rows that have no record, RuntimeError where CUDA fails.
        """
        load = self._load
        describe(load, records, rows, target.data_ptr())
        load[kernels.FAILED :] = 0
        with self._crew.slots(min(_JOBS, len(self._ring))) as slots:
            kernels.carry(self._crew.control, slots, load, self._events)
        if load[kernels.FAILED]:
            raise RuntimeError(f"copying rows to the device: CUDA error {load[kernels.FAILED]}")
        if load[kernels.OUTSIDE]:
            raise InputError(f"a row is outside 0..{len(records) - 1}", "ask for rows of it")
        return load[kernels.GATHERING] / 1e9, load[kernels.COPYING] / 1e9


def cuda_carrier(
    ring: Tensor, stream: torch.cuda.Stream, events: list[torch.cuda.Event]
) -> Carrier | None:
    """A carrier on `stream`, None where this process has no crew or CUDA's driver is not found."""
    crew, driver = the_crew(), None if torch.version.cuda is None else cuda_driver()
    if crew is None or driver is None:
        return None
    for event in events:
        event.record(stream)  # there is no event before
    addresses = [event.cuda_event for event in events]
    return Carrier(crew, driver, ring, addresses, stream.cuda_stream)
