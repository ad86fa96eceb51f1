"""All rows of a layer on disk, with a bounded cache in host memory: a `RecordSource`.

`DiskRows` reads the files of a bundle, or those of the table that the bundle refers to. Rows that
are not in the cache are read by row number, by a few threads, and cached. `RowFiles` advises the
system of the next reads (posix_fadvise) before it reads, so that few threads keep the disk's queue
full: one thread with 128 announced reads got 110,000 to 130,000 rows a second, 16 to 128 threads
without announcements 39,000 to 59,000, with five times the processor time.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import preadv
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES
from engram_cli.rows.source import Span
from engram_cli.runtime.tiers import renew_in_children
from engram_cli.runtime.tiers.records import READ_HINT, patched_records, read_rows, record_layout
from engram_cli.runtime.tiers.row_cache import RowCache

WINDOW = 128  # reads announced ahead
GAP_BYTES = 4096  # the largest gap between rows of one read: skipping a page costs no more
RUN_ROWS = 256  # most rows of one read; each may need two of the system's 1,024 buffers
KEPT_OPEN = 64  # open files of a layer; a table may have many more chunk files

Rows = NDArray[np.int64]

_NOWHERE = memoryview(bytearray(GAP_BYTES))
# Without posix_fadvise each read waits for the one before.
_RANDOM = getattr(os, "POSIX_FADV_RANDOM", 0)
_WILL_NEED = getattr(os, "POSIX_FADV_WILLNEED", 0)
_advise = getattr(os, "posix_fadvise", lambda descriptor, begin, size, advice: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runs:
    """Runs of neighbouring rows of a file: run i is `sizes[i]` bytes of `files[i]` from byte
    `begins[i]` on, with the rows from the `firsts[i]`-th to before the `firsts[i + 1]`-th.

    `files` and `firsts` have one entry more, which is no run.
    """

    files: list[int]
    firsts: list[int]
    begins: list[int]
    sizes: list[int]


class RowFiles:
    """Reads rows, or their scales, of `row_bytes` each from the files of a layer. Thread safe."""

    def __init__(self, spans: Sequence[Span], row_bytes: int, layer: int) -> None:
        self.row_bytes, self._layer = row_bytes, layer
        self._spans = tuple(spans)
        self._firsts = np.array([span.first for span in spans], dtype=np.int64)
        self._begins = np.array([span.begin for span in spans], dtype=np.int64)
        # Bytes from row to row: more than a row's where others lie between them.
        self._stride_of = [span.stride or row_bytes for span in spans]
        self._strides = np.array(self._stride_of, dtype=np.int64)
        self._lock = Lock()
        self._kept: dict[int, int] = {}
        self._end = weakref.finalize(self, _close_all, self._kept)

    def after_fork(self) -> None:
        """Make a new lock in a child process, which shares the open files."""
        self._lock = Lock()

    def close(self) -> None:
        """Close the files."""
        self._end()

    def read(self, rows: Rows, lines: Rows, stride: int, target: memoryview) -> int:
        """Read `rows` [n], ascending, each to byte `line * stride` of `target`; n `lines`.

        Returns the number of reads. Raises ArtifactError, which names the file and the row.
        """
        runs = self._runs(rows)
        rows_of, places = rows.tolist(), (lines * stride).tolist()
        keep = len(self._spans) <= KEPT_OPEN
        opened = self._kept if keep else {}
        ahead, width, count = 0, self.row_bytes, len(runs.sizes)
        # A Python call costs a tenth of a read, so this loop makes few.
        read_at = getattr(os, "preadv", preadv)
        try:
            for done in range(count):
                while ahead < count and ahead < done + WINDOW:
                    file = runs.files[ahead]
                    if file not in opened:
                        self._open(file, opened)
                    _advise(opened[file], runs.begins[ahead], runs.sizes[ahead], _WILL_NEED)
                    ahead += 1
                file, first, begin = runs.files[done], runs.firsts[done], runs.begins[done]
                size, place = runs.sizes[done], places[first]
                if size == width:
                    buffers = [target[place : place + width]]
                else:
                    own = slice(first, runs.firsts[done + 1])
                    stride = self._stride_of[file]
                    buffers = _buffers(rows_of[own], places[own], width, stride, target)
                try:
                    whole = read_at(opened[file], buffers, begin) == size
                except OSError:
                    whole = False
                if not whole:
                    end = runs.firsts[done + 1]
                    run = zip(rows_of[first:end], places[first:end], strict=True)
                    self._read_each(file, opened[file], begin, [*run], target)
                if not keep and file != runs.files[done + 1]:
                    os.close(opened.pop(file))
        finally:
            if not keep:
                _close_all(opened)
        return count

    def _runs(self, rows: Rows) -> _Runs:
        """Split ascending rows where the file changes, or the gap to the next row is large."""
        files = np.searchsorted(self._firsts, rows, side="right") - 1
        begins = self._begins[files] + (rows - self._firsts[files]) * self._strides[files]
        gaps = np.diff(begins) - self.row_bytes
        cut = (np.diff(files) != 0) | (gaps < 0) | (gaps > GAP_BYTES)
        cut |= np.arange(1, len(rows)) % RUN_ROWS == 0
        firsts = np.flatnonzero(np.concatenate([[True], cut])) if len(rows) else files
        ends = np.append(firsts[1:], len(rows))
        sizes = begins[ends - 1] + self.row_bytes - begins[firsts]
        return _Runs(
            files=[*files[firsts].tolist(), -1],
            firsts=[*firsts.tolist(), len(rows)],
            begins=begins[firsts].tolist(),
            sizes=sizes.tolist(),
        )

    def _open(self, file: int, opened: dict[int, int]) -> None:
        path = self._spans[file].file
        with self._lock:
            if file in opened:
                return
            try:
                opened[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                _advise(opened[file], 0, 0, _RANDOM)  # no read-ahead
            except OSError as error:
                raise ArtifactError(
                    f"cannot open {path}: {error.strerror}", "put the file back, or attach again"
                ) from None

    def _read_each(
        self,
        file: int,
        descriptor: int,
        begin: int,
        run: list[tuple[int, int]],
        target: memoryview,
    ) -> None:
        """Read the (row, place) of a run one by one, to finish it or to name the bad row."""
        for row, place in run:
            rest, why = target[place : place + self.row_bytes], "the file ends before it"
            at = begin + (row - run[0][0]) * self._stride_of[file]
            read_at = getattr(os, "preadv", preadv)
            try:
                while rest and (count := read_at(descriptor, [rest], at)):
                    rest, at = rest[count:], at + count
            except OSError as error:
                why = str(error.strerror)
            if rest:
                name = f"{self._spans[file].file}: row {row} of layer {self._layer}"
                raise ArtifactError(f"{name} cannot be read: {why}", READ_HINT)


def _buffers(
    rows: list[int], places: list[int], width: int, stride: int, target: memoryview
) -> list[memoryview]:
    """Return the buffers of a run: the targets of its rows, and scratch space for the gaps."""
    found = [target[places[0] : places[0] + width]]
    for one, two, place in zip(rows, rows[1:], places[1:], strict=False):
        gap = (two - one) * stride - width
        if gap > 0:
            found.append(_NOWHERE[:gap])
        found.append(target[place : place + width])
    return found


def _close_all(opened: dict[int, int]) -> None:
    while opened:
        os.close(opened.popitem()[1])


SCRATCH_BYTES = 32 * 2**20  # the most that a request takes in addition to the cache
# Scales held in memory halve the reads of a missing row. The same memory saves fewer reads as a
# cache: one three times as large missed 62 % of the rows of real text instead of 76 %.
HELD_SHARE = 0.75  # the largest share of the memory that scales may take
_THREADS = 2  # one thread sustains 137,000 reads a second; more wait for each other
_ALONE = 64  # up to so many rows are read by the calling thread
_PIECE_ROWS = 2**15
_PIECE_BYTES = 8 * 2**20


class DiskRows:
    """Reads a layer's rows from disk, with at most `cache_bytes` of host memory, scales included.

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
        self.rows, self.record_bytes = bundle.spec.rows(layer), self._layout.record_bytes
        self._files = {ROWS: RowFiles(bundle.spans(layer, ROWS), self._layout.row_bytes, layer)}
        self._scales = None
        if self._layout.scale_bytes:
            spans = bundle.spans(layer, SCALES)
            self._files[SCALES] = RowFiles(spans, self._layout.scale_bytes, layer)
            if self.rows * self._layout.scale_bytes <= cache_bytes * HELD_SHARE:
                self._scales = _read_scales(bundle, layer, self._layout.scale_bytes)
        held = 0 if self._scales is None else self._scales.nbytes
        self.cache = RowCache(self.record_bytes, cache_bytes - held)
        self._piece = max(1, min(_PIECE_ROWS, _PIECE_BYTES // self.record_bytes))
        self._threads = threads
        self._patched = patched_records(bundle, layer)
        self._start()
        names = ("rows", "bytes", "hits", "seconds", "reads")
        self._sums: dict[str, int | float] = dict.fromkeys(names, 0)
        renew_in_children(self)

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="engram-disk")
        self._lock = Lock()

    def after_fork(self) -> None:
        """Make threads and locks again in a child process."""
        self._start()
        self.cache.after_fork()
        for files in self._files.values():
            files.after_fork()

    @property
    def held_bytes(self) -> int:
        """Return the most host memory that cache and scales take between requests."""
        return self.cache.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def gather(self, rows: Tensor, out: Tensor) -> None:
        """Write the records of `rows` to `out` (`RecordSource.gather`); repeated rows too."""
        wanted, lines = self._checked(rows, out)
        begin = time.perf_counter()
        hits = reads = 0
        step = -(-len(wanted) // max(1, -(-len(wanted) // self._piece)))  # pieces of one size
        for first in range(0, len(wanted), max(1, step)):
            own = slice(first, first + step)
            found, count = self._gather(wanted[own], lines[own])
            hits, reads = hits + found, reads + count
        self._patch(wanted, out)
        more = (len(wanted), lines.nbytes, hits, time.perf_counter() - begin, reads)
        with self._lock:
            for name, value in zip(self._sums, more, strict=True):
                self._sums[name] += value

    def _patch(self, rows: Rows, out: Tensor) -> None:
        """Put the records of rows that patches replace in the place of those in the files."""
        if self._patched is None:
            return
        ids, records = self._patched
        places = np.minimum(np.searchsorted(ids, rows), len(ids) - 1)
        at = np.flatnonzero(ids[places] == rows)
        out.numpy()[at] = records.numpy()[places[at]]

    def counters(self) -> dict[str, int | float]:
        """Totals since the start (`RecordSource.counters`), and `reads` of the files."""
        with self._lock:
            return dict(self._sums)

    def close(self) -> None:
        """Close the files, end the threads, free the cache."""
        self._pool.shutdown()
        for files in self._files.values():
            files.close()
        self._scales = None
        self.cache = RowCache(self.record_bytes, 0)

    def _checked(self, rows: Tensor, out: Tensor) -> tuple[Rows, NDArray[np.int64]]:
        """Return the rows, and `out` as 8-byte words. Raises InputError."""
        shape = (len(rows), self.record_bytes) if rows.ndim == 1 else None
        if rows.dtype != torch.int64 or out.dtype != torch.uint8 or out.shape != shape:
            raise InputError(
                f"rows {rows.dtype} {tuple(rows.shape)} into {out.dtype} {tuple(out.shape)}",
                f"give rows int64 [n] and uint8 [n, {self.record_bytes}]",
            )
        if rows.device.type != "cpu" or out.device.type != "cpu" or not out.is_contiguous():
            raise InputError("rows or records are not in host memory, or lie apart", "copy them")
        wanted = np.ascontiguousarray(rows.numpy())
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.rows:
            raise InputError(
                f"row {wanted.min()} or {wanted.max()} is outside 0..{self.rows - 1}",
                "ask for rows that the layer has",
            )
        return wanted, out.numpy().view(np.int64)

    def _gather(self, rows: Rows, lines: NDArray[np.int64]) -> tuple[int, int]:
        """Gather one piece; return (cached rows, reads)."""
        found = self.cache.take(rows, lines)
        missing = np.flatnonzero(~found)
        if not len(missing):
            return len(rows), 0
        missing = missing[np.argsort(rows[missing], kind="stable")]
        reads = self._read(rows[missing], missing, lines)
        self.cache.put(rows[missing], missing, lines)
        return len(rows) - len(missing), reads

    def _read(self, rows: Rows, at: Rows, lines: NDArray[np.int64]) -> int:
        """Read ascending `rows` to the records `at` of `lines`; return the number of reads."""
        jobs = list(self._jobs(rows, at, lines.reshape(-1).view(np.uint8).data))
        if len(rows) <= _ALONE:
            reads = sum(job() for job in jobs)
        else:
            futures = [self._pool.submit(job) for job in jobs]
            wait(futures)  # no thread may write to `lines` after an error is raised
            reads = sum(future.result() for future in futures)
        if self._scales is not None:
            begin, size = self._layout.scale_begin, self._layout.scale_bytes
            lines.view(np.uint8)[at, begin : begin + size] = self._scales[rows]
        return reads

    def _jobs(self, rows: Rows, at: Rows, target: memoryview) -> Iterator[Callable[[], int]]:
        """Return jobs that each read a share of the rows, or of their scales."""
        begins = {ROWS: 0, SCALES: self._layout.scale_begin}
        count = self._threads if len(rows) > _ALONE else 1
        shares = list(zip(np.array_split(rows, count), np.array_split(at, count), strict=True))
        for part, files in self._files.items():
            if part == ROWS or self._scales is None:
                for own, lines in shares:
                    into = target[begins[part] :]
                    yield partial(files.read, own, lines, self.record_bytes, into)


def _read_scales(bundle: Bundle, layer: int, width: int) -> NDArray[np.uint8]:
    """Read all scales of a layer, uint8[rows, width]. Raises ArtifactError."""
    held = np.empty((bundle.spec.rows(layer), width), dtype=np.uint8)
    step = max(1, _PIECE_BYTES // width)
    for span in bundle.spans(layer, SCALES):
        for line in range(0, span.rows, step):
            target = held[span.first + line :][: min(step, span.rows - line)]
            read_rows(span, SCALES, line, target)
    return held
