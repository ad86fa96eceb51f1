"""Copies parts of files at the speed of the disk, and compares them.

The kernel copies where it can (`copy_file_range`): without bytes in this process, and on file
systems with reflinks without moving any.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engram_cli.errors import ArtifactError
from engram_cli.remote.path import is_distant

_STEP = 2**26  # bytes copied between two reports of progress
_PIECE = 2**18
GRAIN = 2**16  # copies that begin at a multiple of it in both files are 1.3 times as fast
_COMPARED = 2**20  # bytes compared while they are in the cache
_UNABLE = frozenset(
    (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM)
)
_HINT = "the file is damaged or was not downloaded whole: take it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Bytes of tensor data that move together: from `begin` of the old file to `to` of the new."""

    begin: int
    size: int
    to: int


def copy_bytes(
    source: BinaryIO,
    target: BinaryIO,
    begin: int,
    size: int,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Copy `size` bytes from `begin` of an unbuffered file to where `target` stands.

    The kernel copies where it can. Raises OSError, ArtifactError for a file that ends too early.
    """
    # Only whole blocks are shared, and only if both files are at the start of one.
    head = -begin % GRAIN
    if (begin - target.tell()) % GRAIN == 0 and 0 < head < size:
        copy_bytes(source, target, begin, head, advance)
        begin, size = begin + head, size - head
    by_kernel = hasattr(os, "copy_file_range") and size >= GRAIN and not is_distant(source)
    while size:
        done = 0
        if by_kernel:
            try:
                done = os.copy_file_range(source.fileno(), target.fileno(), min(size, _STEP), begin)
            except OSError as error:
                if error.errno not in _UNABLE:
                    raise
            by_kernel = done > 0
        if not by_kernel:
            source.seek(begin)
            piece = source.read(min(size, _PIECE))
            done = len(piece)
            view = memoryview(piece)
            while view:
                view = view[target.write(view) :]
        if not done:
            raise ArtifactError(f"{source.name} ends too early", _HINT)
        begin, size = begin + done, size - done
        if advance is not None:
            advance(done)


def differing_byte(old: Path, new: Path, extents: Iterable[Extent]) -> int | None:
    """Return the first byte of the new file that is not the old one's, None if all are.

    Raises OSError.
    """
    a, b = bytearray(_COMPARED), bytearray(_COMPARED)
    with old.open("rb", buffering=0) as first, new.open("rb", buffering=0) as second:
        for extent in extents:
            first.seek(extent.begin)
            second.seek(extent.to)
            for done in range(0, extent.size, _COMPARED):
                size = min(_COMPARED, extent.size - done)
                there = (
                    read_into(first, memoryview(a)[:size]),
                    read_into(second, memoryview(b)[:size]),
                )
                # What a shorter piece leaves in the buffers was equal before.
                if there[0] != there[1] or a != b:
                    bytes_of = zip(a[:size], b[:size], strict=True)
                    same = next((i for i, (x, y) in enumerate(bytes_of) if x != y), min(there))
                    return extent.to + done + same
    return None


def read_into(file: BinaryIO, target: memoryview) -> int:
    """Fill `target` from an unbuffered file; return how many bytes there were."""
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done
