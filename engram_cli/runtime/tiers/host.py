"""All rows of a layer in host memory as records, pinned where a GPU reads them: a `RecordSource`.

Rows are gathered by the threads of the `GatherPool`, or read in place by a kernel. The memory is
this process's own, or one copy for all processes of the machine (`shared_rows`).
"""

from __future__ import annotations

import mmap
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES
from engram_cli.rows.dtypes import RecordLayout
from engram_cli.rows.safetensors import map_tensor
from engram_cli.rows.source import Span
from engram_cli.runtime.tiers import renew_in_children
from engram_cli.runtime.tiers.records import patched_records, read_rows, record_layout
from engram_cli.runtime.tiers.shared_rows import contents, in_file
from engram_cli.shared_copy import HEADER_BYTES, Advance, Contents, open_copy
from engram_cli.sizes import processors

if TYPE_CHECKING:
    from engram_cli.runtime.tiers.host_gather import GatherPool

_PIECE_BYTES = 16 * 2**20  # read at once
_PINNED_BYTES = 2**30  # registered at once
_THREADS = 8


class HostRows:
    """Records uint8[rows, record_bytes] in host memory, indexed by row number; a `RecordSource`."""

    def __init__(self, records: Tensor, release: Callable[[], None] | None = None) -> None:
        """`release` is called when the rows are not used any more."""
        if records.ndim != 2 or records.dtype != torch.uint8 or records.shape[1] % 8:
            raise InputError(
                f"records are {records.dtype} {tuple(records.shape)}",
                "give uint8 [rows, record_bytes], a record padded to 8 bytes",
            )
        self.records = records
        self.rows, self.record_bytes = records.shape
        self._lock = threading.Lock()
        self._given = 0
        self._seconds = 0.0
        self._release = None if release is None else weakref.finalize(self, release)
        renew_in_children(self)

    def after_fork(self) -> None:
        """Make a new lock in a child process; the pool makes new threads itself."""
        self._lock = threading.Lock()

    @classmethod
    def of_bundle(
        cls, bundle: Bundle, layer: int, *, pinned: bool, shared: bool = False
    ) -> HostRows:
        """Read a layer of a bundle, or take the one copy for all processes of this machine.

        Raises InputError for refused memory, and ArtifactError.
        """
        layout = record_layout(bundle.spec)
        if shared and not pinned and (found := in_file(bundle, layer)):
            mapped = torch.from_numpy(map_tensor(*found))  # privately: patches do not reach it
            _patch(mapped, bundle, layer)
            return cls(mapped)
        if shared:
            if pinned:
                _gather_pool()

            def fill(records: Tensor, advance: Advance) -> None:
                _fill(records.view(-1, layout.record_bytes), layout, bundle, layer, advance)

            held, release = shared_memory(contents(bundle, layer), fill, pinned=pinned)
            return cls(held.view(-1, layout.record_bytes), release)
        records = host_memory(bundle.spec.rows(layer) * layout.record_bytes, pinned=pinned)
        records = records.view(-1, layout.record_bytes)
        if pinned:
            _gather_pool()  # made now, because compiling it takes seconds
        _fill(records, layout, bundle, layer, lambda size: None)
        return cls(records)

    def gather(self, rows: Tensor, out: Tensor) -> None:
        """Write the records of `rows` to `out` (`RecordSource.gather`)."""
        begin = time.perf_counter()
        pool = _gather_pool()
        if pool is None:
            wrong = gather_plainly(self.records, rows, out)
        else:
            wrong = pool.gather(self.records, rows, out)
        if wrong:
            raise InputError(f"a row is outside 0..{self.rows - 1}", "ask for rows of it")
        with self._lock:
            self._given += len(rows)
            self._seconds += time.perf_counter() - begin

    def counters(self) -> dict[str, int | float]:
        """Sums since the start (`RecordSource.counters`)."""
        with self._lock:
            rows, seconds = self._given, self._seconds
        return {"rows": rows, "bytes": rows * self.record_bytes, "hits": 0, "seconds": seconds}

    def close(self) -> None:
        """Free the memory; kernels that read it must have ended."""
        self.records = torch.empty(0, self.record_bytes, dtype=torch.uint8)
        if self._release is not None:
            self._release()


def _gather_pool() -> GatherPool | None:
    from engram_cli.runtime.tiers.host_gather import shared_gather_pool

    return shared_gather_pool()


def gather_plainly(records: Tensor, rows: Tensor, out: Tensor) -> int:
    """Do what `GatherPool.gather` does; return 1 where a row is outside the table."""
    try:
        # As 8-byte words: torch gathers single bytes at a tenth of the speed.
        torch.index_select(records.view(torch.int64), 0, rows, out=out.view(torch.int64))
    except IndexError:
        return 1
    return 0


def host_memory(size: int, *, pinned: bool) -> Tensor:
    """Allocate uint8[size], zero, on huge pages where the system has them.

    Pinned in place, because torch allocates pinned memory in powers of two, which may take twice as
    much. Raises InputError where the system refuses.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    try:
        # Private, because shared pages are rarely huge.
        memory = _Pages(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(f"{size:,} bytes of host memory: {error}", "ask for less") from None
    _ask_for_huge_pages(memory)
    held = torch.frombuffer(memory, dtype=torch.uint8)
    if pinned:
        _pin(memory, held, _touch)
    return held


def shared_memory(
    what: Contents, fill: Callable[[Tensor, Advance], None], *, pinned: bool
) -> tuple[Tensor, Callable[[], None]]:
    """Return the bytes uint8[size] of a shared copy, and what releases it (`open_copy`).

    `fill(held, advance)` writes them if no process has. Raises InputError where the system refuses.
    """

    def bytes_of(memory: _Pages) -> Tensor:
        return torch.frombuffer(memory, dtype=torch.uint8, count=what.size, offset=HEADER_BYTES)

    copy = open_copy(what, lambda memory, advance: fill(bytes_of(memory), advance), _Pages)
    memory = copy.memory
    try:
        _ask_for_huge_pages(memory)
        if pinned:
            _pin(memory, torch.frombuffer(memory, dtype=torch.uint8), _read)
    except BaseException:
        copy.release()
        raise
    return bytes_of(memory), copy.release


def _ask_for_huge_pages(memory: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)


class _Pages(mmap.mmap):
    """Unregisters its memory pages from CUDA before they are freed."""

    registered: tuple[int, ...] = ()

    def __del__(self) -> None:
        if self.registered and not sys.is_finalizing():
            torch.cuda.synchronize()  # kernels may still read them
            for address in self.registered:
                _cudart().cudaHostUnregister(address)


def _pin(memory: _Pages, held: Tensor, touch: Callable[[Tensor, int], object]) -> None:
    """Register the pages of `held` with CUDA; touched first, in parallel, which takes most time."""
    begins = range(0, len(held), _PINNED_BYTES)
    with ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(partial(touch, held), begins))
        codes = list(pool.map(partial(_register, held), begins))
    addresses = (held.data_ptr() + begin for begin in begins)
    memory.registered = tuple(a for a, code in zip(addresses, codes, strict=True) if code == 0)
    if any(codes):
        raise InputError(
            f"{len(held):,} bytes of host memory cannot be pinned (CUDA error {max(codes)})",
            "raise the limit of locked memory (ulimit -l), or ask for less",
        )


def _touch(held: Tensor, begin: int) -> None:
    held[begin : begin + _PINNED_BYTES : mmap.PAGESIZE].zero_()


def _read(held: Tensor, begin: int) -> None:
    """Touch pages that hold something already."""
    held[begin : begin + _PINNED_BYTES : mmap.PAGESIZE].max()


def _register(held: Tensor, begin: int) -> int:
    size = min(_PINNED_BYTES, len(held) - begin)
    return int(_cudart().cudaHostRegister(held.data_ptr() + begin, size, 0))


def _fill(
    records: Tensor, layout: RecordLayout, bundle: Bundle, layer: int, advance: Advance
) -> None:
    """Read a layer's shards into their parts of `records`, several pieces at a time.

    `advance` gets the bytes of each piece.
    """

    def read(span: Span, part: str, line: int, target: NDArray[np.uint8]) -> None:
        read_rows(span, part, line, target)
        advance(target.nbytes)

    tasks = []
    for part, size in ((ROWS, layout.row_bytes), (SCALES, layout.scale_bytes)):
        held = layout.part(records, part)
        for span in bundle.spans(layer, part) if size else ():
            step = max(1, _PIECE_BYTES // size)
            for line in range(0, span.rows, step):
                target = held[span.first + line :][: min(step, span.rows - line)]
                tasks.append((span, part, line, target.numpy()))
    with ThreadPoolExecutor(_threads()) as pool:
        for done in [pool.submit(read, *task) for task in tasks]:
            done.result()
    _patch(records, bundle, layer)


def _patch(records: Tensor, bundle: Bundle, layer: int) -> None:
    """Write the records of the rows that patches replace."""
    patched = patched_records(bundle, layer)
    if patched is not None:
        records.index_copy_(0, torch.from_numpy(np.array(patched[0])), patched[1])


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _threads() -> int:
    return min(_THREADS, processors())
