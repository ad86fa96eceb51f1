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
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from engram_cli.errors import InputError, RuntimeAttachError
from engram_cli.files import parse_json
from engram_cli.runtime.tiers import renew_in_children, with_index
from engram_cli.runtime.tiers.host import HostRows
from engram_cli.runtime.tiers.records import RecordSource

if TYPE_CHECKING:
    from engram_cli.runtime.tiers.host_gather import CopyThread, Load

VARIABLE = "ENGRAM_TIERS_TUNING"
NUMBER_BYTES = 16  # of a staged row in addition to its record: its number and its slot
MOST_STAGED = 8  # at most 1 / 8 of a memory's records is staged at a time
_JOIN_SECONDS = 30.0  # for the worker to end: a disk may never answer
_MIB = 2**20
_PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Sizes in bytes; defaults measured on an H200 with 16 CPU cores (docs/benchmarks.md).

    Up to `in_place_bytes` of cold records asked of a layer by one call are read in place over the
    bus; how many are cold is expected from the calls before.
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
        """Return the most device memory that staged records take, of all layers together."""
        return self.ahead_bytes + self.block_bytes

    @property
    def pinned_bytes(self) -> int:
        """Return the pinned bytes of the ring; row numbers take up to 1 / 30 of the blocks more."""
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


class CudaEvent(NamedTuple):
    """An event of a stream; without one, as on a CPU, it has always happened."""

    event: torch.cuda.Event | None = None

    @property
    def address(self) -> int:
        """Return the address of CUDA's event, 0 on a CPU."""
        return 0 if self.event is None else int(self.event.cuda_event)

    def wait(self) -> None:
        """Block this thread until the event has happened."""
        if self.event is not None:
            self.event.synchronize()

    def hold_back(self, device: torch.device) -> None:
        """Make later work of the current stream of `device` wait for the event."""
        if self.event is not None:
            torch.cuda.current_stream(device).wait_event(self.event)


class SideStream:
    """A stream in addition to the current one; `stream` is None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device

    @contextmanager
    def launch(self, *, after_current: bool) -> Iterator[None]:
        """Launch on this stream, if asked for after all work that the current stream has now."""
        if self.stream is None:
            yield
            return
        if after_current:
            self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            yield

    def record(self) -> CudaEvent:
        """Record an event that happens when all work launched so far is done."""
        return CudaEvent(None if self.stream is None else self.stream.record_event())


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
    copied: CudaEvent = field(default_factory=CudaEvent)
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


@dataclass(slots=True)
class Transfers:
    """Totals since the start: records, their bytes, and seconds of the thread that copies them.

    `finding`: waiting for row numbers; `gathering`; `copying`: waiting for a free buffer.
    """

    rows: int = 0
    bytes: int = 0
    finding: float = 0.0
    gathering: float = 0.0
    copying: float = 0.0

    def add(self, rows: int, size: int, finding: float, gathering: float, copying: float) -> None:
        """Add `rows` records of `size` bytes in all, and seconds."""
        self.rows += rows
        self.bytes += size
        self.finding += finding
        self.gathering += gathering
        self.copying += copying


class StagingQueue:
    """Copies blocks to one device, in order, for all layers of a memory there.

    `reserve` and `release` count the device memory of blocks that were begun ahead.
    """

    def __init__(self, device: torch.device, tuning: Tuning) -> None:
        self.device, self.tuning = with_index(device), tuning
        self.find = SideStream(self.device)
        self.transfers = Transfers()
        self._closed = False
        self._parents: list[object] = []  # used by threads of the parent process, kept alive
        self._start()
        renew_in_children(self)

    def _start(self) -> None:
        self.alone = threading.Lock()  # its holder may begin one block over the budget
        self._lock = threading.Lock()
        self._ahead = 0
        self._worker = _Worker(self.device, self.tuning, self.transfers)
        self._copy_threads: list[CopyThread | None] = []  # [None] where there can be none
        self._end = weakref.finalize(self, self._worker.close)

    def after_fork(self) -> None:
        """Make threads and locks again in a child process."""
        self._parents += [self._worker, *self._copy_threads]
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
                self._worker.send(block)

    def wait(self, block: Block) -> None:
        """Wait until a block's copies are launched. Raises the error of its source."""
        error = block.wait()
        if error is not None:
            raise error
        if block.load is not None:
            with self._lock:
                rows = block.load.rows
                self.transfers.add(rows, rows * block.staging.shape[1], *block.load.seconds)

    def _copy_thread(self) -> CopyThread | None:
        """Return the thread that copies from host memory to a GPU, None where there is none."""
        if not self._copy_threads:
            self._copy_threads.append(None)
            if self.device.type == "cuda":
                from engram_cli.runtime.tiers.host_gather import cuda_copy_thread

                self._copy_threads[0] = cuda_copy_thread(
                    self.device, self.tuning.ring_buffers, self.tuning.ring_buffer_bytes
                )
        return self._copy_threads[0]

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


class _Ring:
    """The worker's stream and pinned buffers, each with the event of the last copy from it."""

    def __init__(self, device: torch.device, tuning: Tuning) -> None:
        self.copies = SideStream(device)
        shape = (tuning.ring_buffers, tuning.ring_buffer_bytes)
        self._buffers = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.size = tuning.ring_buffer_bytes
        self._events = [CudaEvent()] * tuning.ring_buffers
        self._next = 0

    def take(self) -> Tensor:
        """Return the next buffer, after the last copy from it has ended."""
        self._events[self._next].wait()
        return self._buffers[self._next]

    def give(self) -> None:
        """Give back the buffer taken last, which is read by the copies launched so far."""
        self._events[self._next] = self.copies.record()
        self._next = (self._next + 1) % len(self._buffers)


class _Worker:
    """Copies the blocks that no copy thread can copy, in a thread that starts with the first.

    It holds no reference to its `StagingQueue`, so that this can be freed.
    """

    def __init__(self, device: torch.device, tuning: Tuning, transfers: Transfers) -> None:
        self.thread: threading.Thread | None = None
        self._queue: SimpleQueue[Block | None] = SimpleQueue()
        self._device, self._tuning, self._transfers = device, tuning, transfers

    def send(self, block: Block) -> None:
        """Queue a block; callers hold a lock."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, name="engram-rows", daemon=True)
            self.thread.start()
        self._queue.put(block)

    def close(self) -> None:
        """End the thread after its queue is empty, also when Python ends, and wait for it."""
        self._queue.put(None)
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        ring: _Ring | None = None
        # Tensors made in inference mode may only be written in that mode.
        with torch.inference_mode():
            while (block := self._queue.get()) is not None:
                try:
                    ring = ring or _Ring(self._device, self._tuning)
                    self._copy(block, ring)
                except BaseException as error:
                    block.error = error
                    with suppress(RuntimeError):  # of a device that is lost
                        block.found.wait()
                        if ring is not None:
                            ring.copies.record().wait()  # nothing writes to the block any more
                finally:
                    block.done.set()
                    del block

    def _copy(self, block: Block, ring: _Ring) -> None:
        """Gather a block's records and launch their copies."""
        begin = time.perf_counter()
        block.found.wait()  # dropped or not: `host` is written until then
        if block.dropped:
            return
        self._transfers.finding += time.perf_counter() - begin
        rows = block.host[1 : 1 + int(block.host[0])].long()
        width = block.staging.shape[1]
        step = ring.size // width
        with ring.copies.launch(after_current=False):
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
                ring.give()
                self._transfers.add(
                    len(part), records.numel(), 0.0, gathered - taken, taken - begin
                )
        block.copied = ring.copies.record()
