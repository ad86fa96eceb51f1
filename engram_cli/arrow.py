"""Arrow columns to and from NumPy without pandas.

`to_numpy` and `pyarrow.array` load it where it is installed, which takes 0.1 to 0.5 s. Columns that
are read are validated before: their buffers are as long as they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def integers(column: Any, missing: int | None = None) -> NDArray[Any]:
    """Return a column of integers [n] of its own type, `missing` where it has no value.

    Raises ValueError for a column of another type, and for missing values where none is given.
    """
    kind = np.dtype(str(column.type))
    if kind.kind not in "iu":
        raise ValueError(f"a column is {column.type}")
    parts = [np.empty(0, dtype=kind)]
    for chunk in column.chunks:
        valid, raw = chunk.buffers()
        begin, end = chunk.offset, chunk.offset + len(chunk)
        values = np.frombuffer(raw or b"", dtype=kind)[begin:end]
        if chunk.null_count:
            if missing is None:
                raise ValueError("a column lacks values")
            values = np.where(_bits(valid, chunk), values, kind.type(missing))
        parts.append(values)
    return np.concatenate(parts)


def booleans(column: Any) -> NDArray[np.bool_]:
    """Return a column of booleans [n], false where it has no value.

    Raises ValueError for a column of another type.
    """
    if not pa.types.is_boolean(column.type):
        raise ValueError(f"a column is {column.type}")
    parts = [np.empty(0, dtype=np.bool_)]
    for chunk in column.chunks:
        valid, raw = chunk.buffers()
        values = _bits(raw, chunk)
        parts.append(values & _bits(valid, chunk) if chunk.null_count else values)
    return np.concatenate(parts)


def _bits(raw: Any, chunk: Any) -> NDArray[np.bool_]:
    """Return the bits of a buffer that belong to a chunk."""
    bits = np.unpackbits(np.frombuffer(raw or b"", dtype=np.uint8), bitorder="little")
    return bits[chunk.offset : chunk.offset + len(chunk)].astype(np.bool_)


def numbers(values: NDArray[Any]) -> Any:
    """Return the Arrow array of numbers [n] in the machine's byte order; it may share memory."""
    flat = np.ascontiguousarray(values)
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(flat.dtype), len(flat), [None, pa.py_buffer(flat)]
    )


def strings(texts: Sequence[str]) -> Any:
    """Return the Arrow array of texts, at most 2 GiB of them."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int32)
    np.cumsum(np.fromiter(map(len, encoded), np.int32, len(encoded)), out=offsets[1:])
    return pa.StringArray.from_buffers(
        len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))
    )
