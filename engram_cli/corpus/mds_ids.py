"""The encodings of MDS columns that hold token ids: bytes in, arrays of integers out.

ndarray, ndarray:DTYPE, ndarray:DTYPE:SHAPE and bytes. What the name does not say stands before the
values: u8 the type, then u8 (dimensions << 2 | log2 of the width of a size) and the sizes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_CODES = {
    8: "uint8",
    9: "int8",
    16: "uint16",
    17: "int16",
    32: "uint32",
    33: "int32",
    64: "uint64",
    65: "int64",
}
_BYTES_DTYPE = "int64"  # what is usually written as bytes, which do not say it


def is_ids(encoding: str) -> bool:
    """Whether an encoding may hold token ids."""
    name, *rest = encoding.split(":")
    shaped = len(rest) < 2 or (len(rest) == 2 and all(n.isdigit() for n in rest[1].split(",")))
    return encoding == "bytes" or (
        name == "ndarray" and shaped and (not rest or rest[0] in _CODES.values())
    )


def ids_of(raw: bytes, encoding: str, dtype: str | None) -> NDArray[np.integer]:
    """The integers of a sample, in one line; `dtype` is of bytes. Raises ValueError."""
    if encoding == "bytes":
        return _values(raw, dtype or _BYTES_DTYPE)
    _, *rest = encoding.split(":")
    if not raw:
        raise ValueError("an array of no bytes")
    if rest:
        kind = rest[0]
    else:
        if raw[0] not in _CODES:
            raise ValueError(f"an array of type {raw[0]}, no integers")
        kind, raw = _CODES[raw[0]], raw[1:]
    if len(rest) == 2:
        shape = [int(size) for size in rest[1].split(",")]
    else:
        if not raw:
            raise ValueError("an array without a shape")
        dimensions, width = raw[0] >> 2, 2 ** (raw[0] & 3)
        begin = 1 + dimensions * width
        if not dimensions or len(raw) < begin:
            raise ValueError("an array without a shape")
        shape = np.frombuffer(raw[1:begin], f"<u{width}").tolist()
        raw = raw[begin:]
    ids = _values(raw, kind)
    if math.prod(shape) != len(ids):
        raise ValueError(f"an array of shape {shape} with {len(ids)} values")
    return ids


def _values(raw: bytes, kind: str) -> NDArray[np.integer]:
    dtype: np.dtype[np.integer] = np.dtype(kind).newbyteorder("<")
    if len(raw) % dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes are no {kind}")
    return np.frombuffer(raw, dtype)
