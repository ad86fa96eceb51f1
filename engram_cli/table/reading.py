"""Chunk files of a store as arrays: ranges of rows read in order, or whole chunks mapped.

Ranges are read, not mapped: mapped pages count as the process's memory until somebody needs it.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.table.grid import ChunkedArray

DAMAGED = "see what is wrong with engram verify, then build the table again"


def read_range(path: Path, array: ChunkedArray, first: int, count: int) -> NDArray[Any]:
    """`count` rows of the array from `first` on, all of which it has.

    Raises ArtifactError for a file that cannot be read or is too short.
    """
    out: NDArray[Any] = np.empty((count, *array.shape[1:]), dtype=array.dtype)
    done = 0
    while done < count:
        index, offset = divmod(first + done, array.chunk_rows)
        here = min(array.chunk_rows - offset, count - done)
        file = path / array.file(index)
        target = out[done : done + here].reshape(-1).view(np.uint8).data
        try:
            with file.open("rb", buffering=0) as chunk:
                chunk.seek(offset * array.row_bytes)
                while target:
                    read = chunk.readinto(target)
                    if not read:
                        raise ArtifactError(f"{file} ends too early", DAMAGED)
                    target = target[read:]
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror}", DAMAGED) from None
        done += here
    return out


def map_chunk(path: Path, array: ChunkedArray, index: int, *, random: bool = False) -> NDArray[Any]:
    """All of a chunk [chunk_rows, ...], the last one's filling included, mapped and read-only.

    `random`: nothing is read ahead. Raises ArtifactError.
    """
    file = path / array.file(index)
    try:
        with file.open("rb") as chunk:
            mapped = mmap.mmap(chunk.fileno(), array.chunk_bytes, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be mapped: {error}", DAMAGED) from None
    if random and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    rows: NDArray[Any] = np.frombuffer(mapped, dtype=array.dtype).reshape(array.chunk_shape)
    return rows
