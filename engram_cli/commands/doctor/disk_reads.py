"""Measures random reads of a disk, briefly: of a file that is there, or of a temporary one.

Reads go past the system's page cache (O_DIRECT) where the file system allows it.
"""

from __future__ import annotations

import mmap
import os
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from engram_cli.sizes import file_system, free_bytes

PAGE = 4096
THREADS = 16
SECONDS = 0.5  # of each of the two measurements
TEMPORARY_BYTES = 64 * 2**20
_LEAST_BYTES = 16 * 2**20  # of a file that is measured
_ROOM = 10  # a temporary file is written where so many times its size are free
_MOST_FILES = 10_000  # of a folder that are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReads:
    """Random reads of 4 KiB a second, by one thread and by THREADS.

    `file`: None for a temporary one. `cached`: the reads may have come from memory. Rates are None
    where nothing was measured; `problem` says why, unless that was not wanted.
    """

    folder: str
    file_system: str | None
    free_bytes: int | None
    file: str | None = None
    cached: bool = False
    one_thread_reads_per_second: float | None = None
    threads: int = THREADS
    reads_per_second: float | None = None
    problem: str | None = None


def measure_reads(place: Path, *, seconds: float = SECONDS, wanted: bool = True) -> DiskReads:
    """Measure the disk that has `place`, an artifact or a folder; only its free room if not wanted.

    The largest file of at least 16 MiB is read, else a temporary file of 64 MiB that has no name.
    It is written only where ten times as much is free.
    """
    folder = place if place.is_dir() else place.parent
    found = DiskReads(
        folder=str(folder), file_system=file_system(folder), free_bytes=free_bytes(folder)
    )
    if not wanted:
        return found
    try:
        largest = _largest(place)
        if largest is not None:
            handle = os.open(largest, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return _measured(replace(found, file=str(largest)), handle, seconds)
            finally:
                os.close(handle)
        if found.free_bytes is not None and found.free_bytes < _ROOM * TEMPORARY_BYTES:
            return replace(
                found, problem=f"{found.free_bytes:,} bytes are free, too few for a test file"
            )
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            block = os.urandom(2**20)
            for _ in range(TEMPORARY_BYTES // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            return _measured(found, file.fileno(), seconds)
    except OSError as error:
        return replace(found, problem=f"{error.filename or folder}: {error.strerror}")


def _largest(place: Path) -> Path | None:
    """Return the largest file of an artifact, at least 16 MiB; None if there is none."""
    best, size, met = None, _LEAST_BYTES - 1, 0
    if place.is_file():
        return place if place.stat().st_size > size else None
    for home, _, names in os.walk(place):
        for name in names:
            path, met = Path(home, name), met + 1
            with suppress(OSError):
                about = path.lstat()
                if about.st_size > size and path.is_file() and not path.is_symlink():
                    best, size = path, about.st_size
        if met > _MOST_FILES:
            break
    return best


def _measured(found: DiskReads, handle: int, seconds: float) -> DiskReads:
    """Add the reads a second of an open file, by one thread and by many."""
    direct = _direct(handle)
    pages = os.fstat(handle).st_size // PAGE
    own = handle if direct is None else direct

    def read(seed: int) -> int:
        """Read until the time is over; return how often."""
        chosen, count = random.Random(seed), 0
        with mmap.mmap(-1, PAGE) as memory:  # aligned, as direct reads need it
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                offset = chosen.randrange(pages) * PAGE
                if direct is None and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(own, offset, PAGE, os.POSIX_FADV_DONTNEED)
                os.preadv(own, [memory], offset)
                count += 1
        return count

    try:
        alone = read(0) / seconds
        with ThreadPoolExecutor(THREADS) as pool:
            many = sum(pool.map(read, range(1, THREADS + 1))) / seconds
    finally:
        if direct is not None:
            os.close(direct)
    return replace(
        found,
        cached=direct is None,
        one_thread_reads_per_second=round(alone, 1),
        reads_per_second=round(many, 1),
    )


def _direct(handle: int) -> int | None:
    """Open the same file for reads past the page cache; None where that is not possible."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        direct = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, PAGE) as memory:
            os.preadv(direct, [memory], 0)
    except OSError:
        os.close(direct)
        return None
    return direct
