"""The scan's measures as plain NumPy, the definition that the kernels must equal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.scan.kernels import SIGNS

Measures = tuple[NDArray[np.float32], NDArray[np.uint64], NDArray[np.uint32]]


def measure(
    words: NDArray[np.uint32], keys: NDArray[np.uint32], values: NDArray[np.float32]
) -> Measures:
    """Norms, hashes and signatures of rows given as words [n, 2, half] and as values [n, dim]."""
    mixed = (words + keys).astype(np.uint64)
    total: NDArray[np.uint64] = np.sum(mixed[:, 0] * mixed[:, 1], axis=1, dtype=np.uint64)
    total += np.uint64(words.shape[2])
    hashes = np.minimum(scramble(total), np.uint64(2**64 - 2))
    leading = words[:, 0, :SIGNS] >> np.uint32(31)
    signs = np.bitwise_or.reduce(
        leading << np.arange(leading.shape[1], dtype=np.uint32), axis=1, dtype=np.uint32
    )
    return norms(values), hashes, signs


def norms(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[n]: Euclidean norms; NaN where a value is, else infinite where one is."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.sum(values.astype(np.float64) ** 2, axis=1)
        return np.asarray(np.sqrt(sums), dtype=np.float32)


def scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`kernels.scramble` of each value."""
    z = values.astype(np.uint64)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)
