"""The gather kernel in plain NumPy, with an equal signature."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray


def take_rows(
    bases: NDArray[np.uint64],
    rows: NDArray[np.int64],
    chunk_rows: int,
    row_bytes: int,
    out: NDArray[np.uint8],
) -> None:
    """Copy each row to `out` from its chunk, chunk i being mapped at `bases[i]`."""
    target = out.reshape(len(rows), row_bytes)
    chunk_of = rows // chunk_rows
    for index in np.unique(chunk_of).tolist():
        memory = (ctypes.c_uint8 * (chunk_rows * row_bytes)).from_address(int(bases[index]))
        chunk = np.ctypeslib.as_array(memory).reshape(chunk_rows, row_bytes)
        places = np.flatnonzero(chunk_of == index)
        target[places] = chunk.take(rows[places] - index * chunk_rows, axis=0)
