"""Writes the rows of a conversion into its files, in threads, and notes what is on the disk.

Rows are read, converted and written in pieces that stay in the cache. Parts of other files are
copied by the kernel.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.files import START_BYTES, inner_file, start_writing
from engram_cli.formats.base import WriteOptions
from engram_cli.formats.row_plan import RECORDS, Digest, Place, RowFiles
from engram_cli.rows import DTYPES
from engram_cli.rows.copying import Extent, copy_bytes
from engram_cli.rows.source import ROWS, SCALES
from engram_cli.rows.stored_as import PIECE_BYTES, stored_reader
from engram_cli.rows.views import Requantised

NOTE = "rows.json"
_FLUSHED = 2**29  # bytes written between two notes of what is on the disk
_QUEUED = 8  # pieces a thread has before it

T = TypeVar("T")
Task = tuple[int, int, int]  # layer, first row, rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What of a conversion is on the disk: the first `rows`, and the first `copied` bytes."""

    rows: int = 0
    copied: int = 0


def note(folder: Path, plan: RowFiles, request: str, done: Done) -> None:
    """Note in the work folder what is on the disk. Raises OutputError."""
    names = [file.name for file in plan.files] + [*plan.small]
    about = {"request": request, "files": names, **asdict(done)}
    with inner_file(folder / NOTE) as part:
        part.write_text(json.dumps(about), encoding="utf-8")


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[Task], T],
    tasks: Iterator[Task],
    threads: int,
) -> Iterator[T]:
    """Yield the results of tasks in order, with a few tasks waiting for each thread."""
    waiting = deque(pool.submit(work, task) for task in islice(tasks, threads * _QUEUED))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, task) for task in islice(tasks, 1))
    finally:
        for each in waiting:
            each.cancel()


class Writer:
    """The opened files of a work folder; `write` may run in threads."""

    def __init__(self, folder: Path, plan: RowFiles, request: str) -> None:
        self._folder, self._plan, self._request = folder, plan, request
        self.digests: dict[str, Digest] = {}
        for file in plan.files if plan.hashed is not None else ():
            assert plan.hashed is not None
            self.digests[file.name] = plan.hashed()
            for raw in file.head.values():
                self.digests[file.name].update(np.frombuffer(raw, np.uint8))
        self._read = stored_reader(plan.source, plan.dtype)
        self._handles: dict[str, int] = {}
        by_part: dict[tuple[int, str], list[Place]] = {}
        for place in sorted(plan.places, key=lambda place: place.first):
            by_part.setdefault((place.layer, place.part), []).append(place)
        self._places = {
            layer: [
                ([place.first for place in places], places)
                for (other, _), places in by_part.items()
                if other == layer
            ]
            for layer in plan.source.layers
        }
        starts = accumulate(
            (plan.source.layout.layer(n).rows for n in plan.source.layers), initial=0
        )
        self._starts = dict(zip(plan.source.layers, starts, strict=False))

    def __enter__(self) -> Writer:
        for file in self._plan.files:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handles[file.name] = os.open(self._folder / file.name, flags, 0o666)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def grow(self, done: Done, options: WriteOptions) -> None:
        """Write what is missing behind what is `done`.

        What is on the disk is noted now and then, and when this is interrupted.
        """
        self._write_heads(options.progress.advance)
        options.progress.advance(done.copied)
        for place in self._plan.places:
            self._catch_up(place, self._written(place, done.rows), options.progress.advance)
        reached, noted, unflushed, queued = done, done, 0, 0
        flushing: Future[None] | None = None
        with ThreadPoolExecutor(1) as flusher:
            try:
                with closing(self._steps(done, options)) as steps:
                    for reached, size in steps:
                        unflushed += size
                        if unflushed - queued >= START_BYTES:
                            self._start_writing()
                            queued = unflushed
                        if unflushed >= _FLUSHED and (flushing is None or flushing.done()):
                            flushing = flusher.submit(self.flush, reached)
                            noted, unflushed, queued = reached, 0, 0
            finally:
                if flushing is not None:
                    flushing.result()
                if reached != noted or reached.rows == self._plan.rows:
                    self.flush(reached)

    def _steps(self, done: Done, options: WriteOptions) -> Generator[tuple[Done, int], None, None]:
        """Copy and write what is missing; yield what is done by then, and the bytes of the step."""
        advance, copied, rows = options.progress.advance, done.copied, done.rows
        for name, path, extent in self._copies(copied):
            handle = os.dup(self._handles[name])
            with path.open("rb", buffering=0) as old, os.fdopen(handle, "r+b", 0) as new:
                new.seek(extent.to)
                copy_bytes(old, new, extent.begin, extent.size, advance)
            copied += extent.size
            yield Done(rows=rows, copied=copied), extent.size
        # Rows that are copied wait for memory and for the file's lock, where a second thread on two
        # cores costs more than it helps: 0.83x of cp with one, 0.68x with two on a busy machine.
        encodes = isinstance(self._plan.source, Requantised)
        threads = options.threads if encodes else max(1, options.threads // 2)
        with ThreadPoolExecutor(threads) as pool:
            for count, pieces in _in_order(pool, self.write, self.tasks(rows), threads):
                rows += count
                for name, piece in pieces:
                    advance(piece.nbytes)
                    if name in self.digests:
                        self.digests[name].update(piece)
                yield Done(rows=rows, copied=copied), sum(piece.nbytes for _, piece in pieces)

    def _copies(self, done: int) -> Iterator[tuple[str, Path, Extent]]:
        """Yield what is to be copied behind the first `done` bytes, in parts that are noted."""
        for file in self._plan.files:
            for path, extent in file.copies:
                first = min(done, extent.size)
                done -= first
                step = min(_FLUSHED, START_BYTES)
                for at in range(first, extent.size, step):
                    size = min(step, extent.size - at)
                    part = Extent(begin=extent.begin + at, size=size, to=extent.to + at)
                    yield file.name, path, part

    def _written(self, place: Place, done: int) -> int:
        """Return how many bytes of a place the first `done` rows of all layers fill."""
        rows = done - self._starts[place.layer] - place.first
        return min(max(0, rows), place.rows) * place.width

    def _catch_up(self, place: Place, size: int, advance: Callable[[int], None]) -> None:
        """Take the digest of what an earlier run wrote of a place."""
        advance(size)
        if not self.digests or not size:
            return
        with (self._folder / place.file).open("rb", buffering=0) as file:
            file.seek(place.begin)
            while size:
                piece = file.read(min(size, PIECE_BYTES))
                if not piece:
                    raise ArtifactError(f"{file.name} ends too early", "start over with --force")
                self.digests[place.file].update(np.frombuffer(piece, np.uint8))
                size -= len(piece)

    def _write_heads(self, advance: Callable[[int], None]) -> None:
        """Give each file its size, and write what is neither rows nor copied."""
        for file in self._plan.files:
            handle = self._handles[file.name]
            os.ftruncate(handle, file.size)  # longer only: that flushes nothing
            for at, raw in file.head.items():
                _write_at(handle, memoryview(raw), at)
                advance(len(raw))

    def tasks(self, done: int) -> Iterator[Task]:
        """Yield (layer, first row, rows) of each piece behind the first `done` rows."""
        source = self._plan.source
        if not self._plan.places:
            return
        step = max(1, PIECE_BYTES // DTYPES.load(self._plan.dtype).row_bytes(source.dim or 1))
        for layer in source.layers:
            rows = source.layout.layer(layer).rows
            for first in range(min(done, rows), rows, step):
                yield layer, first, min(step, rows - first)
            done = max(0, done - rows)

    def write(self, task: Task) -> tuple[int, list[tuple[str, NDArray[np.uint8]]]]:
        """Write a piece to all its places; return its rows, and what went into which file."""
        layer, first, count = task
        assert self._read is not None
        stored = [np.atleast_2d(part).view(np.uint8) for part in self._read(*task)]
        written = []
        for firsts, places in self._places[layer]:
            raw = _part(stored, places[0].part)
            index = max(0, bisect_right(firsts, first) - 1)
            for place in islice(places, index, None):
                begin, end = max(first, place.first), min(first + count, place.first + place.rows)
                if begin >= first + count:
                    break
                if begin < end:
                    piece = raw[begin - first : end - first].reshape(-1)
                    at = place.begin + (begin - place.first) * place.width
                    _write_at(self._handles[place.file], piece.data, at)
                    written.append((place.file, piece))
        return count, written

    def _start_writing(self) -> None:
        for handle in self._handles.values():
            start_writing(handle, 0, 0)

    def flush(self, done: Done) -> None:
        """Write everything to the disk, then note that this is there."""
        for handle in self._handles.values():
            os.fsync(handle)
        note(self._folder, self._plan, self._request, done)


def _write_at(handle: int, view: memoryview, at: int) -> None:
    while view:
        count = os.pwrite(handle, view, at)
        view, at = view[count:], at + count


def _part(stored: list[NDArray[np.uint8]], part: str) -> NDArray[np.uint8]:
    """Return a part of rows as bytes [n, width], from items and scales [n, ...]."""
    if part == ROWS:
        return stored[0]
    if part == SCALES:
        return stored[1]
    items, scales = stored
    if part == RECORDS:
        return np.concatenate(stored, axis=1)
    blocks = np.empty((len(items), scales.shape[1], 33), dtype=np.uint8)
    blocks[:, :, 0] = scales
    blocks[:, :, 1:] = items.reshape(len(items), -1, 32)
    return blocks.reshape(len(items), -1)
