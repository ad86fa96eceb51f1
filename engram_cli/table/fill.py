"""Fills the row chunks of a half-built table, several at a time, each whole before it counts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from threading import BoundedSemaphore, Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import OutputError
from engram_cli.files import PART, START_BYTES, inner_file, output_errors, start_writing
from engram_cli.outputs import open_work
from engram_cli.progress import SILENT, Progress
from engram_cli.rows.checksum import Checksum
from engram_cli.table.grid import ChunkedArray
from engram_cli.table.inits.base import Filler, PassInit, StoredInit
from engram_cli.table.journal import SCRATCH, Journal
from engram_cli.table.kept_sums import sums_name, sync_sums
from engram_cli.table.spec import TableSpec, layer_scale

PIECE_BYTES = 2**20  # float32 values made, encoded, summed and written while in the L2 cache
FLUSHING = 2  # chunks that may wait for the disk while others are made
_TICK = 0.1  # seconds between two reports of progress


def fill_rows(
    spec: TableSpec,
    folder: Path,
    journal: Journal,
    scratch: Path,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> None:
    """Make every row chunk of `spec` in `folder` that the journal does not list yet.

    An init that works in passes keeps files in `scratch` from one pass to the next. Raises
    OutputError when the system refuses to write. On any error, Ctrl-C included, the chunks that
    are whole stay, and are in the journal.
    """
    work = _Work(spec, folder, journal, threads)
    with output_errors(folder):
        work.scale_layers()
    if isinstance(spec.init, PassInit):
        _fill_by_passes(spec, spec.init, work, scratch, progress)
        return
    progress.start("rows into the table", work.total, "bytes")
    work.report(progress)
    _make(work, work.missing(), progress)


def _fill_by_passes(
    spec: TableSpec, init: PassInit, work: _Work, scratch: Path, progress: Progress
) -> None:
    """Make the missing chunks, pass by pass."""
    open_work(scratch, SCRATCH)
    for layer, array in spec.row_arrays.items():
        missing = [index for owner, index in work.missing() if owner == layer]
        spans = [array.span(index) for index in missing]
        for group in init.passes(layer, spec.dim, spans):
            own = [spans[place] for place in group]
            with init.prepared(layer, spec.dim, own, scratch) as filler:
                work.fillers[layer] = filler
                progress.start("rows into the table", work.total, "bytes")
                work.report(progress, restarted=True)
                _make(work, [(layer, missing[place]) for place in group], progress)
                del work.fillers[layer]


def _make(work: _Work, chunks: list[tuple[int, int]], progress: Progress) -> None:
    """Make chunks (layer, index) in threads; stop all at the first error."""
    pool = ThreadPoolExecutor(work.threads + FLUSHING, thread_name_prefix="engram-fill")
    try:
        pending = {pool.submit(work.make, *chunk) for chunk in chunks}
        while pending:
            done, pending = wait(pending, timeout=_TICK, return_when=FIRST_EXCEPTION)
            work.report(progress)
            _raise_first(done, work.folder)
    except BaseException:
        work.stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _Work:
    """The chunks to make, and what the threads share."""

    def __init__(self, spec: TableSpec, folder: Path, journal: Journal, threads: int) -> None:
        self.folder, self.journal, self.spec, self.threads = folder, journal, spec, threads
        self.fillers: dict[int, Filler | None] = {}
        if not isinstance(spec.init, PassInit):
            self.fillers = {layer: spec.init.filler(layer, spec.dim) for layer in spec.row_arrays}
        self.stored = spec.init.stored() if isinstance(spec.init, StoredInit) else None
        self.sums = spec.sums_arrays
        self.layer_scales: dict[int, NDArray[Any]] = {}
        self.total = sum(array.stored_bytes for array in spec.filled_arrays)
        self.stop = Event()
        self._written = journal.done_bytes
        self._reported = 0
        self._lock = Lock()
        self._making = BoundedSemaphore(threads)

    def missing(self) -> list[tuple[int, int]]:
        """Return (layer, chunk) of every chunk of rows that is not whole, its scales included."""
        return [
            (layer, index)
            for layer, array in self.spec.row_arrays.items()
            for index in range(array.chunks)
            if any(each.file(index) not in self.journal.done for each in self._together(layer))
        ]

    def scale_layers(self) -> None:
        """Find the scale of every layer that has one for all of its rows, or read it again."""
        for layer, array in self.spec.layer_scale_arrays.items():
            name = array.file(0)
            if name not in self.journal.done:
                scale = layer_scale(self.spec, layer, self.fillers.get(layer))
                files = write_array(self.folder, array, scale)
                self.journal.add(name, *files[name])
                self._count(array.stored_bytes)
            self.layer_scales[layer] = np.fromfile(self.folder / name, dtype=array.dtype)

    def make(self, layer: int, index: int) -> None:
        """Make one chunk of rows and that of their scales: write, flush, rename, note."""
        parts = [_Part(self.folder, array, index) for array in self._together(layer)]
        already = sum(self.journal.done.get(part.name, (0, ""))[0] for part in parts)
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(part)
            with self._making:
                if self.stop.is_set():
                    return
                self._count(-already)
                for piece in self._pieces(layer, index):
                    if self.stop.is_set():
                        raise _Stopped
                    self._count(sum(map(_Part.write, parts, piece)))
                self._count(sum(map(_Part.pad, parts)))
            for part in parts:
                os.fsync(part.handle)
            sync_sums(self.folder, [a for a in self.sums if a.name == sums_name(layer)])
            with self._lock:
                for part in parts:
                    os.replace(part.path, self.folder / part.name)
                    self.journal.add(part.name, part.array.file_bytes, part.checksum.hexdigest())

    def report(self, progress: Progress, *, restarted: bool = False) -> None:
        """Report the bytes written since the last report; all of them to a `restarted` bar."""
        with self._lock:
            written = self._written
        if restarted:
            self._reported = 0
        if written > self._reported:
            progress.advance(written - self._reported)
            self._reported = written

    def _together(self, layer: int) -> list[ChunkedArray]:
        """Return the arrays whose chunks are made together: the rows and their scales."""
        rows = self.spec.row_arrays[layer]
        scales = self.spec.row_scale_arrays.get(layer)
        return [rows] if scales is None else [rows, scales]

    def _pieces(self, layer: int, index: int) -> Iterator[list[NDArray[np.uint8]]]:
        """Yield the bytes of a chunk's rows and scales without padding; none if all are zero."""
        filler, dim, row_type = self.fillers[layer], self.spec.dim, self.spec.row_type
        arrays = self._together(layer)
        first, count = arrays[0].span(index)
        if self.stored is not None:
            step = max(1, PIECE_BYTES // self.spec.row_bytes)
            for begin in range(first, first + count, step):
                parts = self.stored(layer, begin, min(step, first + count - begin))
                yield [part.reshape(-1).view(np.uint8) for part in parts]
            return
        if filler is None:
            return
        step = min(max(1, PIECE_BYTES // (4 * dim)), count)
        values = np.empty((step, dim), dtype=np.float32)
        buffers = [np.empty((step, *array.shape[1:]), dtype=array.dtype) for array in arrays]
        for begin in range(0, count, step):
            rows = min(step, count - begin)
            filler(first + begin, values[:rows])
            parts = [buffer[:rows] for buffer in buffers]
            scales = parts[1] if len(parts) > 1 else self.layer_scales.get(layer)
            row_type.encode(values[:rows], parts[0], scales)
            yield [part.reshape(-1).view(np.uint8) for part in parts]

    def _count(self, amount: int) -> None:
        with self._lock:
            self._written += amount


class _Part:
    """A chunk file that grows under a temporary name, which is removed when the block ends."""

    def __init__(self, folder: Path, array: ChunkedArray, index: int) -> None:
        self.array, self.name = array, array.file(index)
        self.path = folder / f"{self.name}{PART}"
        self.checksum = Checksum()
        self.size = self._queued = 0
        self.handle = -1

    def __enter__(self) -> _Part:
        self.handle = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666
        )
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)
        self.path.unlink(missing_ok=True)

    def write(self, piece: NDArray[np.uint8]) -> int:
        """Append bytes; return their number."""
        self.checksum.update(piece)
        _write_all(self.handle, piece)
        self.size += len(piece)
        if self.size - self._queued >= START_BYTES:
            start_writing(self.handle, self._queued, self.size - self._queued)
            self._queued = self.size
        return len(piece)

    def pad(self) -> int:
        """Pad the file to the size of a chunk, and add its index; return the number of bytes."""
        rest, index = self.array.chunk_bytes - self.size, self.array.index()
        self.checksum.update_zeros(rest)
        os.ftruncate(self.handle, self.array.chunk_bytes)
        if len(index):
            self.checksum.update(index)
            os.lseek(self.handle, 0, os.SEEK_END)
            _write_all(self.handle, index)
        return rest + len(index)


class _Stopped(Exception):
    """Another chunk failed, so this one was abandoned."""


def write_array(
    folder: Path, array: ChunkedArray, values: NDArray[Any]
) -> dict[str, tuple[int, str]]:
    """Write a small array; return path: (size, checksum) of its chunks. Raises OSError."""
    files = {}
    for index in range(array.chunks):
        first, count = array.span(index)
        chunk = np.zeros(array.chunk_shape, dtype=array.dtype)
        chunk[:count] = values[first : first + count]
        flat = np.concatenate([chunk.reshape(-1).view(np.uint8), array.index()])
        with inner_file(folder / array.file(index)) as part:
            flat.tofile(part)
        checksum = Checksum()
        checksum.update(flat)
        files[array.file(index)] = (array.file_bytes, checksum.hexdigest())
    return files


def _write_all(handle: int, data: NDArray[np.uint8]) -> None:
    view = data.data
    while len(view):
        view = view[os.write(handle, view) :]


def _raise_first(done: set[Future[None]], folder: Path) -> None:
    for future in done:
        error = future.exception()
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise OutputError(
                f"cannot write {folder}: {error.strerror or error}",
                f"{'free some space' if full else 'fix that'}, then run the same command again: "
                "it resumes from there",
            ) from error
        if error is not None:
            raise error
