"""Reading ranges of rows from chunk files, in order and with constant memory.

Plain reads, not maps: mapped pages count as the process's memory until somebody else needs it.
"""

from __future__ import annotations

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
