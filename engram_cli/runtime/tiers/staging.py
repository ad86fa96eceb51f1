"""Copies staged rows from a `RecordSource` to a device, through a ring of pinned buffers.

A block has row numbers that are copied to the host, and device memory for their records. The
records are gathered part by part into the next free buffer, which is copied to the device on a
stream of its own while the next buffer is filled. A `CopyThread` does this for rows in host memory
and a GPU, otherwise a Python thread. An event of the block happens after its last copy. `Tuning`
has the sizes, with measured defaults; ENGRAM_TIERS_TUNING may name a JSON file with others.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engram_cli.errors import InputError, RuntimeAttachError
from engram_cli.files import parse_json
from engram_cli.runtime.tiers import renew_in_children
from engram_cli.runtime.tiers.host import HostRows
from engram_cli.runtime.tiers.records import RecordSource

if TYPE_CHECKING:
    from engram_cli.runtime.tiers.host_gather import CopyThread, Load

VARIABLE = "ENGRAM_TIERS_TUNING"
NUMBER_BYTES = 16  # of a staged row in addition to its record: its number and its slot
MOST_STAGED = 8  # at most 1 / 8 of a memory's records is staged at a time
_MIB = 2**20
_PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Sizes in bytes; defaults measured on an H200 with 16 CPU cores (docs/benchmarks.md).

    Up to `in_place_bytes` of records asked of a layer by one call are read in place over the bus.
    More are staged: rows travel in blocks of at most `block_bytes` of device memory, `ahead_bytes`
    of them before their layer runs, through a ring of `ring_buffers` pinned buffers of
    `ring_buffer_bytes`. Raises InputError.
    """

    in_place_bytes: int = 8 * _MIB
    block_bytes: int = 128 * _MIB
    ahead_bytes: int = 256 * _MIB
    ring_buffers: int = 4
    ring_buffer_bytes: int = 8 * _MIB

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = _LEAST.get(name, _PAGE)
            if type(value) is not int or value < least:
                raise InputError(f"tuning: {name} is {value!r}", f"an integer from {least} on")

    @property
    def device_bytes(self) -> int:
        """The most device memory that staged records take, of all layers together."""
        return self.ahead_bytes + self.block_bytes

    @property
    def pinned_bytes(self) -> int:
        """The pinned memory of the ring; row numbers take up to 1 / 30 of the blocks more."""
        return self.ring_buffers * self.ring_buffer_bytes

    def within(self, rows: int, record_bytes: int, *, devices: int = 1) -> Tuning:
        """Return smaller sizes where a memory of `rows` records is small (`MOST_STAGED`).

        A block and a buffer hold at least one record, and 4,096 bytes.
        """
        line, parts = record_bytes + NUMBER_BYTES, MOST_STAGED * devices
        most = min(rows * line // parts, self.device_bytes)
        buffer = rows * record_bytes // (parts * self.ring_buffers)
        # torch allocates pinned memory in powers of two.
        buffer = min(self.ring_buffer_bytes, 1 << max(0, buffer.bit_length() - 1))
        return replace(
            self,
            block_bytes=max(self.block_bytes * most // self.device_bytes, line, _PAGE),
            ahead_bytes=self.ahead_bytes * most // self.device_bytes,
            ring_buffer_bytes=max(buffer, record_bytes, _PAGE),
        )


_LEAST = {"in_place_bytes": 0, "ahead_bytes": 0, "ring_buffers": 2}


def local_tuning() -> Tuning:
    """Return the tuning of this machine: the defaults, changed by the file. Raises InputError."""
    path = os.environ.get(VARIABLE)
    if not path:
        return Tuning()
    try:
        document = parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{VARIABLE}: {path}: {error}", "name a JSON file") from None
    names = [each.name for each in fields(Tuning)]
    if not isinstance(document, dict) or set(document) - set(names):
        raise InputError(
            f"{VARIABLE}: {path} is no object of known fields", f"known are {', '.join(names)}"
        )
    return Tuning(**document)


class CudaEvent:
    """An event of a stream; without one, as on a CPU, it has always happened."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self._event = event

    @property
    def address(self) -> int:
        """The address of CUDA's event, 0 on a CPU."""
        return 0 if self._event is None else int(self._event.cuda_event)

    def wait(self) -> None:
        """Block this thread until the event has happened."""
        if self._event is not None:
            self._event.synchronize()

    def hold_back(self, device: torch.device) -> None:
        """Make later work of the current stream of `device` wait for the event."""
        if self._event is not None:
            torch.cuda.current_stream(device).wait_event(self._event)


class SideStream:
    """A stream in addition to the current one; `stream` is None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device

    @contextmanager
    def after_current(self) -> Iterator[None]:
        """Launch on this stream, after all work that the current stream has now."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Launch on this stream, without waiting for others."""
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            yield

    def record(self) -> CudaEvent:
        """Record an event that happens when all work launched so far is done."""
        return CudaEvent(None if self.stream is None else self.stream.record_event())


def with_index(device: torch.device) -> torch.device:
    """Return a CUDA device with its index, as the devices of tensors have one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def lend(*tensors: Tensor) -> None:
    """Tell torch that the current stream uses memory that another stream may have allocated."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def is_captured(device: torch.device) -> bool:
    """Whether the current stream of `device` is being captured into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


_JOIN_SECONDS = 30.0  # for the worker to end: a disk may never answer


@dataclass(slots=True, eq=False, kw_only=True)
class Block:
    """Records that are copied together.

    `host` int32 or int64 [n + 1] is valid after the event `found`: the count of row numbers, then
    the row numbers. `staging` uint8[n, record_bytes] on the device has their records after the
    event `copied`. A copy thread copies them as `load`, or the worker, which sets `done`.
    """

    source: RecordSource
    host: Tensor
    found: CudaEvent
    staging: Tensor
    load: Load | None = None
    done: threading.Event = field(default_factory=threading.Event)
    copied: CudaEvent = field(default_factory=lambda: CudaEvent(None))
    error: BaseException | None = None
    dropped: bool = False

    def drop(self) -> None:
        """Mark the block as not needed; it must still be waited for."""
        self.dropped = True
        if self.load is not None:
            self.load.drop()

    def wait(self) -> BaseException | None:
        """Wait until all copies are launched; return the error where that failed."""
        if self.load is None:
            self.done.wait()
            return self.error
        try:
            self.load.wait()
        except Exception as error:
            return error
        return None


class _TransferCounters:
    """Totals since the start."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.seconds_found = 0.0
        self.seconds_gathered = 0.0
        self.seconds_copies = 0.0

    def add(self, block: Block) -> None:
        """Add a block that a copy thread copied."""
        if block.load is None:
            return
        rows, (found, gathered, copies) = block.load.rows, block.load.seconds
        self.rows += rows
        self.bytes += rows * block.staging.shape[1]
        self.seconds_found += found
        self.seconds_gathered += gathered
        self.seconds_copies += copies


class StagingQueue:
    """Fetches blocks for one device, in order, for all layers of a memory there.

    `reserve` and `release` count the device memory of blocks that were begun ahead.
    """

    def __init__(self, device: torch.device, tuning: Tuning) -> None:
        self.device, self.tuning = with_index(device), tuning
        self.find = SideStream(self.device)
        self.travelled = _TransferCounters()
        self._closed = False
        self._parents: list[object] = []  # used by threads of the parent process, kept alive
        self._start()
        renew_in_children(self)

    def _start(self) -> None:
        self.alone = threading.Lock()  # its holder may begin one block over the budget
        self._lock = threading.Lock()
        self._ahead = 0
        self._queue: SimpleQueue[Block | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._copy_threads: list[CopyThread | None] = []  # [None] where there can be none
        self._end = weakref.finalize(self, _end, self._queue, self._workers)

    def after_fork(self) -> None:
        """Make threads and locks again in a child process."""
        self._parents += [self._queue, *self._workers, *self._copy_threads]
        self._end.detach()
        self._start()

    def send(self, block: Block) -> None:
        """Queue a block. Raises RuntimeAttachError after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeAttachError("the memory was detached", "attach it again")
            source = block.source
            copy_thread = self._copy_thread() if isinstance(source, HostRows) else None
            if copy_thread is not None and isinstance(source, HostRows):
                block.load, copied = copy_thread.load(
                    source.records, block.host, block.staging, block.found.address
                )
                block.copied = CudaEvent(copied)
                copy_thread.send(block.load)
            else:
                self._start_worker()
                self._queue.put(block)

    def wait(self, block: Block) -> None:
        """Wait until a block's copies are launched. Raises the error of its source."""
        error = block.wait()
        if error is not None:
            raise error
        with self._lock:
            self.travelled.add(block)

    def _copy_thread(self) -> CopyThread | None:
        """The thread that copies rows from host memory to a GPU, None where it cannot exist."""
        if not self._copy_threads:
            self._copy_threads.append(None)
            if self.device.type == "cuda":
                from engram_cli.runtime.tiers.host_gather import cuda_copy_thread

                size = self.tuning.ring_buffer_bytes
                self._copy_threads[0] = cuda_copy_thread(
                    self.device, self.tuning.ring_buffers, size
                )
        return self._copy_threads[0]

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
        """Reserve `size` bytes for staging until `release`; False where the budget is used up."""
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
        """End copy thread and worker after the blocks in their queues."""
        with self._lock:
            self._closed = True
        for copy_thread in self._copy_threads:
            if copy_thread is not None:
                copy_thread.close()
        self._end()


def _end(queue: SimpleQueue[Block | None], workers: list[threading.Thread]) -> None:
    """End the worker after its queue is empty, also when Python ends, and wait for it."""
    queue.put(None)
    for worker in workers:
        if worker is not threading.current_thread():
            worker.join(_JOIN_SECONDS)


class _Ring:
    """The worker's pinned buffers, each with the event of the last copy from it."""

    def __init__(self, device: torch.device, tuning: Tuning) -> None:
        self._buffers = torch.empty(
            (tuning.ring_buffers, tuning.ring_buffer_bytes),
            dtype=torch.uint8,
            pin_memory=device.type == "cuda",
        )
        self.size = tuning.ring_buffer_bytes
        self._events = [CudaEvent(None)] * tuning.ring_buffers
        self._next = 0

    def take(self) -> Tensor:
        """Return the next buffer, after the last copy from it has ended."""
        self._events[self._next].wait()
        return self._buffers[self._next]

    def give(self, event: CudaEvent) -> None:
        """Give back the buffer taken last; copies read it until `event`."""
        self._events[self._next] = event
        self._next = (self._next + 1) % len(self._buffers)


def _work(
    queue: SimpleQueue[Block | None],
    device: torch.device,
    tuning: Tuning,
    travelled: _TransferCounters,
) -> None:
    """Run the worker thread. It holds no reference to its queue, so that this can be freed."""
    ring: _Ring | None = None
    copies: SideStream | None = None
    # Tensors made in inference mode may only be written in that mode.
    with torch.inference_mode():
        while (block := queue.get()) is not None:
            try:
                if ring is None or copies is None:
                    copies = SideStream(device)
                    ring = _Ring(device, tuning)
                _fetch(block, ring, copies, travelled)
            except BaseException as error:
                block.error = error
                with suppress(RuntimeError):  # of a device that is lost
                    block.found.wait()
                    if copies is not None:
                        copies.record().wait()  # nothing writes to the block any more
            finally:
                block.done.set()
                del block


def _fetch(block: Block, ring: _Ring, copies: SideStream, travelled: _TransferCounters) -> None:
    """Gather a block's records and launch their copies."""
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
            ring.give(copies.record())
            travelled.seconds_copies += taken - begin
            travelled.seconds_gathered += gathered - taken
            travelled.rows += len(part)
            travelled.bytes += records.numel()
    block.copied = copies.record()
