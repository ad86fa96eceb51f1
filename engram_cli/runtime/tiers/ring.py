"""The road from a row source to the device: a worker thread and a ring of pinned buffers.

In: blocks, each with row numbers on their way to the host. A block's records are gathered part by
part into the next free buffer, which is copied to the device on a stream of its own, while the
next one is filled: by the crew where they lie in host memory and CUDA copies them. Out: the block,
with a mark that its last copy passes.
"""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.tiers.crew.carrier import Carrier, cuda_carrier
from engram_cli.runtime.tiers.host_rows import HostRows
from engram_cli.runtime.tiers.source import RowSource
from engram_cli.runtime.tiers.streams import Mark, Side, with_index
from engram_cli.runtime.tiers.tuning import Tuning

_PATIENCE = 30.0  # seconds for a worker to end: a disk may never answer


@dataclass(slots=True, eq=False, kw_only=True)
class Block:
    """Records that travel together.

    `host` int32 or int64 [n + 1], valid once `found` is passed: how many row numbers, then they;
    `staging` uint8[n, record_bytes] on the device gets their records.

    `done` is set when the copies are launched, which `copied` marks, or when `error` says why not.
    """

    source: RowSource
    host: Tensor
    found: Mark
    staging: Tensor
    done: threading.Event = field(default_factory=threading.Event)
    copied: Mark = field(default_factory=lambda: Mark(None))
    error: BaseException | None = None
    dropped: bool = False


class _Travelled:
    """Sums of the worker since the start."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.seconds_found = 0.0
        self.seconds_gathered = 0.0
        self.seconds_copies = 0.0


class Road:
    """The worker and the ring of one device, for all layers of a memory there.

    `reserve` and `release` count the device memory of blocks that were begun ahead.
    """

    def __init__(self, device: torch.device, tuning: Tuning) -> None:
        self.device, self.tuning = with_index(device), tuning
        self.find = Side(self.device)
        self.travelled = _Travelled()
        self.alone = threading.Lock()  # who holds it may begin one block beyond those ahead
        self._lock = threading.Lock()
        self._ahead = 0
        self._queue: SimpleQueue[Block | None] = SimpleQueue()
        self._closed = False
        self._workers: list[threading.Thread] = []
        self._end = weakref.finalize(self, _end, self._queue, self._workers)

    def send(self, block: Block) -> None:
        """Have the worker fetch a block. Raises RuntimeAttachError after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeAttachError("the memory was detached", "attach it again")
            if not self._workers:
                worker = threading.Thread(
                    target=_work,
                    args=(self._queue, self.device, self.tuning, self.travelled),
                    name="engram-rows",
                    daemon=True,
                )
                worker.start()
                self._workers.append(worker)
            self._queue.put(block)

    def reserve(self, size: int) -> bool:
        """Whether `size` bytes more may be on their way; if so they count until `release`."""
        with self._lock:
            if self._ahead + size > self.tuning.ahead_bytes:
                return False
            self._ahead += size
            return True

    def release(self, size: int) -> None:
        """Give back what was reserved."""
        with self._lock:
            self._ahead -= size

    def close(self) -> None:
        """End the worker, when it has done what it was sent."""
        with self._lock:
            self._closed = True
        self._end()


def _end(queue: SimpleQueue[Block | None], workers: list[threading.Thread]) -> None:
    """End the worker after what it was sent, also when Python ends, and wait for that."""
    queue.put(None)
    for worker in workers:
        if worker is not threading.current_thread():
            worker.join(_PATIENCE)


class _Ring:
    """Pinned buffers, each with the event of the copy that read it last; none on a CPU."""

    def __init__(self, copies: Side, tuning: Tuning) -> None:
        shape, pinned = (tuning.ring_buffers, tuning.ring_buffer_bytes), copies.stream is not None
        self._buffers = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self._events: list[torch.cuda.Event] = []
        self.carrier: Carrier | None = None
        if copies.stream is not None:
            self._events = [_event() for _ in self._buffers]
            self.carrier = cuda_carrier(self._buffers, copies.stream, self._events)
        self._next = 0

    def take(self, records: int, width: int) -> Tensor:
        """Some of the next buffer as uint8[records, width], when nothing reads it any more."""
        if self._events:
            self._events[self._next].synchronize()
        return self._buffers[self._next][: records * width].view(-1, width)

    def give(self) -> None:
        """The buffer taken last is read by what the current stream has been given."""
        if self._events:
            self._events[self._next].record()
        self._next = (self._next + 1) % len(self._buffers)

    def records(self, width: int) -> int:
        """How many records a buffer holds."""
        return self._buffers.shape[1] // width


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _work(
    queue: SimpleQueue[Block | None], device: torch.device, tuning: Tuning, travelled: _Travelled
) -> None:
    """The worker: it knows neither the memory nor the road, so that both can go."""
    ring: _Ring | None = None
    copies: Side | None = None
    # Staging of a caller in inference mode may only be written in that mode.
    with torch.inference_mode():
        while (block := queue.get()) is not None:
            try:
                if ring is None or copies is None:
                    copies = Side(device)
                    ring = _Ring(copies, tuning)
                _fetch(block, ring, copies, travelled)
            except BaseException as error:
                block.error = error
                with suppress(RuntimeError):  # of a device that is lost
                    block.found.wait()
                    if copies is not None:
                        copies.mark().wait()  # nothing writes to the block any more
            finally:
                block.done.set()
                del block


def _fetch(block: Block, ring: _Ring, copies: Side, travelled: _Travelled) -> None:
    """Gather a block's records, and launch their copies."""
    begin = time.perf_counter()
    block.found.wait()  # dropped or not: `host` is written until then
    if block.dropped:
        return
    travelled.seconds_found += time.perf_counter() - begin
    rows = block.host[1 : 1 + int(block.host[0])]
    with copies.at_once():
        if ring.carrier is not None and isinstance(block.source, HostRows):
            waited = block.source.carry(ring.carrier, rows, block.staging)
            travelled.seconds_gathered += waited[0]
            travelled.seconds_copies += waited[1]
            travelled.rows += len(rows)
            travelled.bytes += len(rows) * block.staging.shape[1]
        else:
            _fetch_in_parts(block, rows.long(), ring, travelled)
    block.copied = copies.mark()


def _fetch_in_parts(block: Block, rows: Tensor, ring: _Ring, travelled: _Travelled) -> None:
    """Have the source fill one buffer after another."""
    width = block.staging.shape[1]
    step = ring.records(width)
    for first in range(0, len(rows), step):
        if block.dropped:
            return
        part = rows[first : first + step]
        begin = time.perf_counter()
        records = ring.take(len(part), width)
        taken = time.perf_counter()
        block.source.gather(part, records)
        gathered = time.perf_counter()
        block.staging[first : first + len(part)].copy_(records, non_blocking=True)
        ring.give()
        travelled.seconds_copies += taken - begin
        travelled.seconds_gathered += gathered - taken
        travelled.rows += len(part)
        travelled.bytes += records.numel()
