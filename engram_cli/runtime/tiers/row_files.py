"""Rows read at random from the files of a bundle: row numbers in, their bytes in place out.

The system is told which pages come next before they are read, so that few threads keep the disk's
queue full: one, with 128 reads announced, reached 110,000 to 130,000 rows a second where 16 to 128
threads that only read reached 39,000 to 59,000, and took a fifth of their processor time.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.formats.bundle import Place

WINDOW = 128  # reads that are announced ahead
GAP_BYTES = 4096  # between rows that one read brings: less than a page costs no read of its own
RUN_ROWS = 256  # that one read brings at most; each may need two of the system's 1,024 buffers
KEPT_OPEN = 64  # files of a layer; a table's own chunk files may be many more

Rows = NDArray[np.int64]

_NOWHERE = memoryview(bytearray(GAP_BYTES))
# Where the system takes no advice, reads wait for each other.
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
    """The files with one part of a layer, `row_bytes` a row. Thread safe."""

    def __init__(self, places: Sequence[Place], row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self._places = tuple(places)
        self._firsts = np.array([place.shard.first_row for place in places], dtype=np.int64)
        self._begins = np.array([place.begin for place in places], dtype=np.int64)
        self._lock = Lock()
        self._kept: dict[int, int] = {}
        self._end = weakref.finalize(self, _close_all, self._kept)

    def after_fork(self) -> None:
        """In a child process, which shares the open files."""
        self._lock = Lock()

    def close(self) -> None:
        """Close the files."""
        self._end()

    def read(self, rows: Rows, lines: Rows, stride: int, target: memoryview) -> int:
        """Read `rows` [n], ascending, each to byte `line * stride` of `target`; n `lines`.

        How many reads it took. Raises ArtifactError, which names the file and the row.
        """
        runs = self._runs(rows)
        rows_of, places = rows.tolist(), (lines * stride).tolist()
        keep = len(self._places) <= KEPT_OPEN
        opened = self._kept if keep else {}
        ahead, width, count = 0, self.row_bytes, len(runs.sizes)
        # A call of Python costs as much as a tenth of a read: this loop has few.
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
                    end = runs.firsts[done + 1]
                    buffers = _buffers(rows_of[first:end], places[first:end], width, target)
                try:
                    whole = os.preadv(opened[file], buffers, begin) == size
                except OSError:
                    whole = False
                if not whole:
                    self._read_each(opened[file], runs, done, rows_of, places, target)
                if not keep and file != runs.files[done + 1]:
                    os.close(opened.pop(file))
        finally:
            if not keep:
                _close_all(opened)
        return count

    def _runs(self, rows: Rows) -> _Runs:
        """Cut ascending rows where the file changes, or the next row lies far."""
        files = np.searchsorted(self._firsts, rows, side="right") - 1
        begins = self._begins[files] + (rows - self._firsts[files]) * self.row_bytes
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
        path = self._places[file].path
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
        descriptor: int,
        runs: _Runs,
        index: int,
        rows: list[int],
        places: list[int],
        target: memoryview,
    ) -> None:
        """Read a run row by row: to finish it, or to know which row cannot be read."""
        first = runs.firsts[index]
        for each in range(first, runs.firsts[index + 1]):
            begin = runs.begins[index] + (rows[each] - rows[first]) * self.row_bytes
            line = target[places[each] : places[each] + self.row_bytes]
            self._read_row(runs.files[index], descriptor, rows[each], begin, line)

    def _read_row(self, file: int, descriptor: int, row: int, begin: int, line: memoryview) -> None:
        done = 0
        while done < len(line):
            try:
                count = os.preadv(descriptor, [line[done:]], begin + done)
            except OSError as error:
                raise self._unreadable(file, row, str(error.strerror)) from None
            if not count:
                raise self._unreadable(file, row, "the file ends before it")
            done += count

    def _unreadable(self, file: int, row: int, why: str) -> ArtifactError:
        place = self._places[file]
        return ArtifactError(
            f"{place.path}: row {row} of layer {place.shard.layer} cannot be read: {why}",
            "check the disk, then write the bundle again with engram attach --force",
        )


def _buffers(
    rows: list[int], places: list[int], width: int, target: memoryview
) -> list[memoryview]:
    """Where the bytes of a run go: rows to their places, what lies between them nowhere."""
    found = [target[places[0] : places[0] + width]]
    for one, two, place in zip(rows, rows[1:], places[1:], strict=False):
        if two - one > 1:
            found.append(_NOWHERE[: (two - one - 1) * width])
        found.append(target[place : place + width])
    return found


def _close_all(opened: dict[int, int]) -> None:
    while opened:
        os.close(opened.popitem()[1])
