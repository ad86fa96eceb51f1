"""The scan's measures as plain NumPy, the definition that the kernels must equal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.uint64]
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def hashes(words: Longs, scales: NDArray[np.float32], keys: Longs) -> Longs:
    """uint64[n]: the hashes of rows given as words [n, w] and scales [n, s], keys [w + s]."""
    width = words.shape[1]
    low = words + keys[:width] & _LOW
    high = (words >> _HALF) + (keys[:width] >> _HALF) & _LOW
    total: Longs = np.sum(low * high, axis=1, dtype=np.uint64)
    bits = scales.view(np.uint32).astype(np.uint64)
    total += np.sum(bits * (keys[width:] | np.uint64(1)), axis=1, dtype=np.uint64)
    return np.minimum(scramble(total + np.uint64(width)), np.uint64(2**64 - 2))


def norms(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[n]: Euclidean norms; NaN where a value is, else infinite where one is."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.sum(values.astype(np.float64) ** 2, axis=1)
        return np.asarray(np.sqrt(sums), dtype=np.float32)


def scramble(values: Longs) -> Longs:
    """`kernels.rows.scramble` of each value."""
    z = values.astype(np.uint64)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def largest(codes: NDArray[np.unsignedinteger], mask: int) -> NDArray[np.unsignedinteger]:
    """The largest `code & mask` of each row [n] of codes [n, width]."""
    return np.max(codes & codes.dtype.type(mask), axis=1, initial=0)


def count_of(codes: NDArray[np.uint8], every: int, mask: int, wanted: int) -> int:
    """How many of `codes & mask` are `wanted`, in one row of `every`."""
    return int(np.count_nonzero((codes[::every] & np.uint8(mask)) == wanted))


def digest(words: Longs, keys: Longs, every: int, seed: int) -> int:
    """`kernels.codes.digest` in Python's integers."""
    value = seed
    for first in range(0, len(words), len(keys) * every):
        run = words[first : first + len(keys)]
        total = len(run)
        for word, key in zip(run.tolist(), keys.tolist(), strict=False):
            total += word + ((word ^ key) & 2**32 - 1) * ((word ^ key) >> 32)
        value = (value ^ total % 2**64) * 0x9E3779B185EBCA87 % 2**64
        value ^= value >> 29
    return value
