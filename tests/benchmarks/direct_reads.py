"""What a disk can do: reads past the page cache, hundreds in flight, by Linux's own queue.

For 64-bit x86, whose numbers of system calls it uses. The yardstick of `disk_rows`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
SLOT = 8192  # of memory for a read
_SETUP, _GET, _SUBMIT = 206, 208, 209
_REQUEST = np.dtype(
    [("slot", "<u8"), ("key", "<u8"), ("op", "<u2"), ("priority", "<i2"), ("file", "<u4"),
     ("memory", "<u8"), ("bytes", "<u8"), ("offset", "<i8"), ("reserved", "<u8"), ("rest", "<u8")]
)  # fmt: skip
_EVENT = np.dtype([("slot", "<u8"), ("request", "<u8"), ("result", "<i8"), ("more", "<i8")])


class DirectReads:
    """A file, open for reads of `width` bytes with `depth` of them in flight."""

    def __init__(self, path: Path, width: int, depth: int) -> None:
        self.file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self.width, self.depth = width, depth
        self.memory = mmap.mmap(-1, depth * SLOT)
        self.slots = np.frombuffer(self.memory, dtype=np.uint8).reshape(depth, SLOT)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.queue = ctypes.c_ulong(0)
        self._call(_SETUP, depth, ctypes.byref(self.queue))

    def read(self, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8[n, width]: the bytes at `offsets` int64[n]."""
        begins = offsets // BLOCK * BLOCK
        sizes = -(-(offsets + self.width) // BLOCK) * BLOCK - begins
        out = np.empty((len(offsets), self.width), dtype=np.uint8)
        requests = np.zeros(self.depth, dtype=_REQUEST)
        requests["file"] = self.file
        requests["slot"] = np.arange(self.depth)
        requests["memory"] = self.slots.ctypes.data + np.arange(self.depth) * SLOT
        places = requests.ctypes.data + np.arange(self.depth, dtype=np.uint64) * _REQUEST.itemsize
        events = np.zeros(self.depth, dtype=_EVENT)
        serves = np.zeros(self.depth, dtype=np.int64)
        free, sent, done = np.arange(self.depth), 0, 0
        while done < len(offsets):
            count = min(len(free), len(offsets) - sent)
            own, free = free[:count], free[count:]
            requests["offset"][own] = begins[sent : sent + count]
            requests["bytes"][own] = sizes[sent : sent + count]
            serves[own] = np.arange(sent, sent + count)
            self._submit(places[own])
            sent += count
            few = max(1, min(self.depth // 4, sent - done))
            ended = events[: self._call(_GET, self.queue, few, self.depth, events.ctypes.data, 0)]
            own = ended["slot"].astype(np.int64)
            lines = serves[own]
            if (ended["result"] != sizes[lines]).any():
                raise OSError(f"a direct read gave {ended['result'].min()}")
            inside = (offsets - begins)[lines, None] + np.arange(self.width)
            out[lines] = self.slots[own[:, None], inside]
            free = np.concatenate([free, own])
            done += len(own)
        return out

    def _submit(self, places: NDArray[np.uint64]) -> None:
        done = 0
        while done < len(places):
            own = places[done:]
            done += self._call(_SUBMIT, self.queue, len(own), own.ctypes.data)

    def _call(self, number: int, *arguments: object) -> int:
        wide = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in arguments]
        result: int = self.libc.syscall(ctypes.c_long(number), *wide)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result
