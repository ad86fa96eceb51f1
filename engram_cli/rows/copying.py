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

_STEP = 2**26  # bytes copied between two reports of progress
_PIECE = 2**22
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
    by_kernel = hasattr(os, "copy_file_range")
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
    """Return the first byte of the new file whose tensor data is not the old one's, None if all is.

    Raises OSError.
    """
    with old.open("rb", buffering=0) as first, new.open("rb", buffering=0) as second:
        for extent in extents:
            for done in range(0, extent.size, _PIECE):
                size = min(_PIECE, extent.size - done)
                first.seek(extent.begin + done)
                second.seek(extent.to + done)
                a, b = _whole(first, size), _whole(second, size)
                if a != b:
                    pairs = zip(a, b, strict=False)
                    same = next((i for i, (x, y) in enumerate(pairs) if x != y), len(b))
                    return extent.to + done + same
    return None


def _whole(file: BinaryIO, size: int) -> bytes:
    parts = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
