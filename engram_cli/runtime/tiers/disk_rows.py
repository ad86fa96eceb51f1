"""All rows of a layer on disk, under a bounded cache in host memory: a `RowSource`.

In: a bundle's own files, or those of the table it refers to. Out: any rows as records; those that
the cache has not are read by row number, a few threads at a time, and kept by use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES
from engram_cli.runtime.tiers.forks import renew_in_children
from engram_cli.runtime.tiers.row_cache import RowCache
from engram_cli.runtime.tiers.row_files import RowFiles
from engram_cli.runtime.tiers.source import record_layout

SCRATCH_BYTES = 32 * 2**20  # the most that a request under way takes beside the cache
# Held, scales halve the reads of a missing row. The memory would not save as many in the cache: one
# three times as large missed 62 % of the rows of real text instead of 76.
HELD_SHARE = 0.75  # of the memory that scales may take
_THREADS = 2  # one keeps a queue of 137,000 reads a second full; more wait for each other
_ALONE = 64  # rows that the asking thread reads itself
_PIECE_ROWS = 2**15
_PIECE_BYTES = 8 * 2**20

Rows = NDArray[np.int64]


class DiskRows:
    """A layer's rows on disk, with at most `cache_bytes` of host memory, scales included.

    `threads` read at a time. Raises ArtifactError.
    """

    def __init__(
        self,
        bundle: Bundle,
        layer: int,
        *,
        cache_bytes: int,
        threads: int = _THREADS,
    ) -> None:
        self._layout = record_layout(bundle.spec)
        self._rows = bundle.spec.rows(layer)
        self._files = {ROWS: RowFiles(bundle.places(layer, ROWS), self._layout.row_bytes)}
        self._scales = None
        if self._layout.scale_bytes:
            self._files[SCALES] = RowFiles(bundle.places(layer, SCALES), self._layout.scale_bytes)
            if self._rows * self._layout.scale_bytes <= cache_bytes * HELD_SHARE:
                self._scales = _read_scales(bundle, layer, self._layout.scale_bytes)
        held = 0 if self._scales is None else self._scales.nbytes
        self.cache = RowCache(self._layout.record_bytes, cache_bytes - held)
        self._piece = max(1, min(_PIECE_ROWS, _PIECE_BYTES // self._layout.record_bytes))
        self._threads = threads
        self._start()
        self._sums: dict[str, int | float] = {
            "rows": 0, "bytes": 0, "hits": 0, "seconds": 0.0, "reads": 0
        }  # fmt: skip
        renew_in_children(self)

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="engram-disk")
        self._lock = Lock()

    def after_fork(self) -> None:
        """Threads and locks of its own for a child process."""
        self._start()
        self.cache.after_fork()
        for files in self._files.values():
            files.after_fork()

    @property
    def rows(self) -> int:
        """The height of the layer's table."""
        return self._rows

    @property
    def record_bytes(self) -> int:
        """The bytes of a record."""
        return self._layout.record_bytes

    @property
    def held_bytes(self) -> int:
        """The host memory that cache and scales take at most, between requests."""
        return self.cache.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def gather(self, rows: Tensor, out: Tensor) -> None:
        """Write the records of `rows` to `out` (`RowSource.gather`); repeated rows too."""
        wanted, lines = self._checked(rows, out)
        begin = time.perf_counter()
        hits = reads = 0
        step = -(-len(wanted) // max(1, -(-len(wanted) // self._piece)))  # pieces of one size
        for first in range(0, len(wanted), max(1, step)):
            own = slice(first, first + step)
            found, count = self._gather(wanted[own], lines[own])
            hits, reads = hits + found, reads + count
        more = {
            "rows": len(wanted),
            "bytes": lines.nbytes,
            "hits": hits,
            "seconds": time.perf_counter() - begin,
            "reads": reads,
        }
        with self._lock:
            for name, value in more.items():
                self._sums[name] += value

    def counters(self) -> dict[str, int | float]:
        """Sums since the start (`RowSource.counters`), and `reads` of the files."""
        with self._lock:
            return dict(self._sums)

    def close(self) -> None:
        """Close the files, end the threads, let go of the cache."""
        self._pool.shutdown()
        for files in self._files.values():
            files.close()
        self._scales = None
        self.cache = RowCache(self._layout.record_bytes, 0)

    def _checked(self, rows: Tensor, out: Tensor) -> tuple[Rows, NDArray[np.int64]]:
        """Rows, and `out` as 8-byte words. Raises InputError."""
        shape = (len(rows), self.record_bytes) if rows.ndim == 1 else None
        if rows.dtype != torch.int64 or out.dtype != torch.uint8 or out.shape != shape:
            raise InputError(
                f"rows {rows.dtype} {tuple(rows.shape)} into {out.dtype} {tuple(out.shape)}",
                f"give rows int64 [n] and uint8 [n, {self.record_bytes}]",
            )
        if rows.device.type != "cpu" or out.device.type != "cpu" or not out.is_contiguous():
            raise InputError("rows or records are not in host memory, or lie apart", "copy them")
        wanted = np.ascontiguousarray(rows.numpy())
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self._rows:
            raise InputError(
                f"row {wanted.min()} or {wanted.max()} is outside 0..{self._rows - 1}",
                "ask for rows that the layer has",
            )
        return wanted, out.numpy().view(np.int64)

    def _gather(self, rows: Rows, lines: NDArray[np.int64]) -> tuple[int, int]:
        """(rows that the cache had, reads) of one piece."""
        found = self.cache.take(rows, lines)
        missing = np.flatnonzero(~found)
        if not len(missing):
            return len(rows), 0
        missing = missing[np.argsort(rows[missing], kind="stable")]
        reads = self._read(rows[missing], missing, lines)
        self.cache.put(rows[missing], missing, lines)
        return len(rows) - len(missing), reads

    def _read(self, rows: Rows, at: Rows, lines: NDArray[np.int64]) -> int:
        """Read ascending `rows` to the records `at` of `lines`; how many reads that took."""
        jobs = list(self._jobs(rows, at, lines.reshape(-1).view(np.uint8).data))
        if len(rows) <= _ALONE:
            reads = sum(job() for job in jobs)
        else:
            futures = [self._pool.submit(job) for job in jobs]
            wait(futures)  # none writes to `lines` once an error is told
            reads = sum(future.result() for future in futures)
        if self._scales is not None:
            begin, size = self._layout.scale_begin, self._layout.scale_bytes
            lines.view(np.uint8)[at, begin : begin + size] = self._scales[rows]
        return reads

    def _jobs(self, rows: Rows, at: Rows, target: memoryview) -> Iterator[Callable[[], int]]:
        """What reads a share of the rows, or of their scales, each."""
        begins = {ROWS: 0, SCALES: self._layout.scale_begin}
        count = self._threads if len(rows) > _ALONE else 1
        shares = list(zip(np.array_split(rows, count), np.array_split(at, count), strict=True))
        for part, files in self._files.items():
            if part == ROWS or self._scales is None:
                for own, lines in shares:
                    into = target[begins[part] :]
                    yield partial(files.read, own, lines, self.record_bytes, into)


def _read_scales(bundle: Bundle, layer: int, width: int) -> NDArray[np.uint8]:
    """uint8[rows, width]: the scales of a layer, read from end to end. Raises ArtifactError."""
    held = np.empty((bundle.spec.rows(layer), width), dtype=np.uint8)
    for place in bundle.places(layer, SCALES):
        first = place.shard.first_row
        target = held[first : first + place.shard.rows].reshape(-1).data
        try:
            with place.path.open("rb", buffering=0) as file:
                file.seek(place.begin)
                while target and (count := file.readinto(target)):
                    target = target[count:]
        except OSError as error:
            raise ArtifactError(f"cannot read {place.path}: {error.strerror}", _MEND) from None
        if target:
            raise ArtifactError(f"{place.path} ends in the middle of its scales", _MEND)
    return held


_MEND = "check the disk, then write the bundle again with engram attach --force"
