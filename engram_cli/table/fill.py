"""Filling the row chunks of a half-built table, several at a time, each whole before it counts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import BoundedSemaphore, Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import OutputError
from engram_cli.files import new_file
from engram_cli.progress import SILENT, Progress
from engram_cli.table.checksum import Checksum
from engram_cli.table.codecs.base import Codec
from engram_cli.table.grid import ChunkedArray
from engram_cli.table.inits.base import Filler
from engram_cli.table.journal import Journal
from engram_cli.table.spec import TableSpec

PIECE_BYTES = 2**20  # float32 values made, encoded, summed and written while in the L2 cache
FLUSHING = 2  # chunks that may wait for the disk while others are made
_TICK = 0.1  # seconds between two words of progress


def fill_rows(
    spec: TableSpec,
    folder: Path,
    journal: Journal,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> None:
    """Make every row chunk of `spec` in `folder` that the journal does not have yet.

    Raises OutputError when the system refuses to write. On any error, Ctrl-C included, the chunks
    that are whole stay, and are in the journal.
    """
    work = _Work(spec, folder, journal, threads)
    progress.start("rows into the table", work.total, "bytes")
    work.report(progress)
    pool = ThreadPoolExecutor(threads + FLUSHING, thread_name_prefix="engram-fill")
    try:
        pending = {pool.submit(work.make, layer, index) for layer, index in work.missing()}
        while pending:
            done, pending = wait(pending, timeout=_TICK, return_when=FIRST_EXCEPTION)
            work.report(progress)
            _raise_first(done, folder)
    finally:
        work.stop.set()
        pool.shutdown(cancel_futures=True)


class _Work:
    """The chunks to make, and the little that the threads share."""

    def __init__(self, spec: TableSpec, folder: Path, journal: Journal, threads: int) -> None:
        self.folder, self.journal, self.codec = folder, journal, spec.codec
        self.arrays = spec.row_arrays
        self.fillers = {layer: spec.init.filler(layer, spec.dim) for layer in self.arrays}
        self.dim = spec.dim
        self.total = sum(array.stored_bytes for array in self.arrays.values())
        self.stop = Event()
        self._written = journal.done_bytes
        self._reported = 0
        self._lock = Lock()
        self._making = BoundedSemaphore(threads)

    def missing(self) -> list[tuple[int, int]]:
        """(layer, chunk) of every chunk that is not whole."""
        return [
            (layer, index)
            for layer, array in self.arrays.items()
            for index in range(array.chunks)
            if array.file(index) not in self.journal.done
        ]

    def make(self, layer: int, index: int) -> None:
        """Make one chunk: write, flush, rename, note."""
        array, filler = self.arrays[layer], self.fillers[layer]
        name = array.file(index)
        part = self.folder / f"{name}.part"
        try:
            with part.open("wb", buffering=0) as file:
                with self._making:
                    if self.stop.is_set():
                        return
                    pieces = _pieces(array, index, filler, self.codec, self.dim)
                    checksum = self._write(file.fileno(), array, pieces)
                os.fsync(file.fileno())
            with self._lock:
                os.replace(part, self.folder / name)
                self.journal.add(name, array.chunk_bytes, checksum)
        finally:
            part.unlink(missing_ok=True)

    def report(self, progress: Progress) -> None:
        """Tell how many more bytes are there."""
        with self._lock:
            written = self._written
        if written > self._reported:
            progress.advance(written - self._reported)
            self._reported = written

    def _write(self, handle: int, array: ChunkedArray, pieces: Iterator[NDArray[np.uint8]]) -> str:
        checksum = Checksum()
        size = 0
        for piece in pieces:
            if self.stop.is_set():
                raise _Stopped
            checksum.update(piece)
            _write_all(handle, piece)
            size += len(piece)
            self._count(len(piece))
        rest = array.chunk_bytes - size
        checksum.update_zeros(rest)
        os.ftruncate(handle, array.chunk_bytes)
        self._count(rest)
        return checksum.hexdigest()

    def _count(self, amount: int) -> None:
        with self._lock:
            self._written += amount


class _Stopped(Exception):
    """Another chunk failed, so this one was given up."""


def write_array(
    folder: Path, array: ChunkedArray, values: NDArray[Any]
) -> dict[str, tuple[int, str]]:
    """Write all of a small array; path: (size, checksum) of its chunks. Raises OSError."""
    files = {}
    for index in range(array.chunks):
        first, count = array.span(index)
        chunk = np.zeros(array.chunk_shape, dtype=array.dtype)
        chunk[:count] = values[first : first + count]
        flat = chunk.reshape(-1).view(np.uint8)
        with new_file(folder / array.file(index), force=True) as part:
            flat.tofile(part)
        checksum = Checksum()
        checksum.update(flat)
        files[array.file(index)] = (array.chunk_bytes, checksum.hexdigest())
    return files


def _pieces(
    array: ChunkedArray, index: int, filler: Filler | None, codec: Codec, dim: int
) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a chunk's rows, without the filling; none where all are zero."""
    if filler is None:
        return
    first, count = array.span(index)
    step = max(1, PIECE_BYTES // (4 * dim))
    values = np.empty((min(step, count), dim), dtype=np.float32)
    stored = np.empty((len(values), *array.shape[1:]), dtype=array.dtype)
    for begin in range(0, count, step):
        rows = min(step, count - begin)
        filler(first + begin, values[:rows])
        codec.encode(values[:rows], stored[:rows])
        yield stored[:rows].reshape(-1).view(np.uint8)


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
                f"{'free some space' if full else 'mend that'}, then run the same command again: "
                "it goes on from there",
            ) from error
        if error is not None:
            raise error
