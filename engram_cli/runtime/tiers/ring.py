"""The road from a row source to the device, through a ring of pinned buffers.

In: blocks, each with row numbers on their way to the host. A block's records are gathered part by
part into the next free buffer, which is copied to the device on a stream of its own, while the
next one is filled: by a courier where rows in host memory go to a GPU, else by a worker in Python.
Out: the block, with a mark that its last copy passes.
"""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.tiers.forks import renew_in_children
from engram_cli.runtime.tiers.host_rows import HostRows
from engram_cli.runtime.tiers.source import RowSource
from engram_cli.runtime.tiers.streams import Mark, Side, with_index
from engram_cli.runtime.tiers.tuning import Tuning

if TYPE_CHECKING:
    from engram_cli.runtime.tiers.crew.courier import Courier, Load

_PATIENCE = 30.0  # seconds for a worker to end: a disk may never answer


@dataclass(slots=True, eq=False, kw_only=True)
class Block:
    """Records that travel together.

    `host` int32 or int64 [n + 1], valid once `found` is passed: how many row numbers, then they;
    `staging` uint8[n, record_bytes] on the device gets their records, which are there when
    `copied` is passed. A courier brings them as `load`, or the worker, who sets `done`.
    """

    source: RowSource
    host: Tensor
    found: Mark
    staging: Tensor
    load: Load | None = None
    done: threading.Event = field(default_factory=threading.Event)
    copied: Mark = field(default_factory=lambda: Mark(None))
    error: BaseException | None = None
    dropped: bool = False

    def drop(self) -> None:
        """Nobody wants it any more; to be waited for all the same."""
        self.dropped = True
        if self.load is not None:
            self.load.drop()

    def wait(self) -> BaseException | None:
        """Wait until all copies are launched; the error why they are not."""
        if self.load is None:
            self.done.wait()
            return self.error
        try:
            self.load.wait()
        except Exception as error:
            return error
        return None


class _Travelled:
    """Sums since the start."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.seconds_found = 0.0
        self.seconds_gathered = 0.0
        self.seconds_copies = 0.0

    def add(self, block: Block) -> None:
        """Count what a courier brought."""
        if block.load is None:
            return
        rows, (found, gathered, copies) = block.load.rows, block.load.seconds
        self.rows += rows
        self.bytes += rows * block.staging.shape[1]
        self.seconds_found += found
        self.seconds_gathered += gathered
        self.seconds_copies += copies


class Road:
    """The courier or worker and the ring of one device, for all layers of a memory there.

    `reserve` and `release` count the device memory of blocks that were begun ahead.
    """

    def __init__(self, device: torch.device, tuning: Tuning) -> None:
        self.device, self.tuning = with_index(device), tuning
        self.find = Side(self.device)
        self.travelled = _Travelled()
        self._closed = False
        self._parents: list[object] = []  # what threads of a parent process use, kept as it is
        self._start()
        renew_in_children(self)

    def _start(self) -> None:
        self.alone = threading.Lock()  # who holds it may begin one block beyond those ahead
        self._lock = threading.Lock()
        self._ahead = 0
        self._queue: SimpleQueue[Block | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._couriers: list[Courier | None] = []  # one or none, once it was asked for
        self._end = weakref.finalize(self, _end, self._queue, self._workers)

    def after_fork(self) -> None:
        """Threads and locks of its own for a child process."""
        self._parents += [self._queue, *self._workers, *self._couriers]
        self._end.detach()
        self._start()

    def send(self, block: Block) -> None:
        """Have a block's records fetched. Raises RuntimeAttachError after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeAttachError("the memory was detached", "attach it again")
            source = block.source
            courier = self._courier() if isinstance(source, HostRows) else None
            if courier is not None and isinstance(source, HostRows):
                block.load, copied = courier.load(
                    source.records, block.host, block.staging, block.found.address
                )
                block.copied = Mark(copied)
                courier.send(block.load)
            else:
                self._start_worker()
                self._queue.put(block)

    def wait(self, block: Block) -> None:
        """Wait until a block's copies are launched. Raises what its source raised."""
        error = block.wait()
        if error is not None:
            raise error
        with self._lock:
            self.travelled.add(block)

    def _courier(self) -> Courier | None:
        """Who fetches rows from host memory for a GPU, where that can be."""
        if not self._couriers:
            self._couriers.append(None)
            if self.device.type == "cuda":
                from engram_cli.runtime.tiers.crew.courier import cuda_courier

                size = self.tuning.ring_buffer_bytes
                self._couriers[0] = cuda_courier(self.device, self.tuning.ring_buffers, size)
        return self._couriers[0]

    def _start_worker(self) -> None:
        if self._workers:
            return
        worker = threading.Thread(
            target=_work,
            args=(self._queue, self.device, self.tuning, self.travelled),
            name="engram-rows",
            daemon=True,
        )
        worker.start()
        self._workers.append(worker)

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
        """End courier and worker, when they have done what they were sent."""
        with self._lock:
            self._closed = True
        for courier in self._couriers:
            if courier is not None:
                courier.close()
        self._end()


def _end(queue: SimpleQueue[Block | None], workers: list[threading.Thread]) -> None:
    """End the worker after what it was sent, also when Python ends, and wait for that."""
    queue.put(None)
    for worker in workers:
        if worker is not threading.current_thread():
            worker.join(_PATIENCE)


class _Ring:
    """The worker's pinned buffers, each with the mark of the copy that read it last."""

    def __init__(self, device: torch.device, tuning: Tuning) -> None:
        self._buffers = torch.empty(
            (tuning.ring_buffers, tuning.ring_buffer_bytes),
            dtype=torch.uint8,
            pin_memory=device.type == "cuda",
        )
        self.size = tuning.ring_buffer_bytes
        self._marks = [Mark(None)] * tuning.ring_buffers
        self._next = 0

    def take(self) -> Tensor:
        """The next buffer; blocks until nothing reads it any more."""
        self._marks[self._next].wait()
        return self._buffers[self._next]

    def give(self, mark: Mark) -> None:
        """The buffer taken last is read until `mark`."""
        self._marks[self._next] = mark
        self._next = (self._next + 1) % len(self._buffers)


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
                    ring = _Ring(device, tuning)
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
    rows = block.host[1 : 1 + int(block.host[0])].long()
    width = block.staging.shape[1]
    step = ring.size // width
    with copies.at_once():
        for first in range(0, len(rows), step):
            if block.dropped:
                break
            part = rows[first : first + step]
            begin = time.perf_counter()
            records = ring.take()[: len(part) * width].view(-1, width)
            taken = time.perf_counter()
            block.source.gather(part, records)
            gathered = time.perf_counter()
            block.staging[first : first + len(part)].copy_(records, non_blocking=True)
            ring.give(copies.mark())
            travelled.seconds_copies += taken - begin
            travelled.seconds_gathered += gathered - taken
            travelled.rows += len(part)
            travelled.bytes += records.numel()
    block.copied = copies.mark()
