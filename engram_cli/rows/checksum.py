"""XXH64 with seed 0, the checksum of chunk files: any bytes in pieces in, 16 hex digits out.

It finds damage, not forgery. `xxhsum -H64 FILE` prints the same digits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALGORITHM = "xxh64"
# The first two are those of `rows.kernels`, which needs Numba: it is imported to compute.
PRIME_1 = 0x9E3779B185EBCA87
PRIME_2 = 0xC2B2AE3D27D4EB4F
_PRIME_3 = 0x165667B19E3779F9
_PRIME_4 = 0x85EBCA77C2B2AE63
_PRIME_5 = 0x27D4EB2F165667C5
_MASK = 2**64 - 1
_STRIPE = 32
_PIECE = 2**20
_ZEROS = np.zeros(_PIECE, dtype=np.uint8)


class Checksum:
    """A running XXH64; how the bytes are cut changes nothing."""

    def __init__(self) -> None:
        self._lanes = np.array(
            [PRIME_1 + PRIME_2 & _MASK, PRIME_2, 0, -PRIME_1 & _MASK], dtype=np.uint64
        )
        self._rest = b""
        self._size = 0

    def update(self, data: NDArray[np.uint8]) -> None:
        """Take the next bytes, uint8[n], contiguous."""
        from engram_cli.rows import kernels

        self._size += len(data)
        if self._rest:
            need = min(_STRIPE - len(self._rest), len(data))
            self._rest += data[:need].tobytes()
            data = data[need:]
            if len(self._rest) < _STRIPE:
                return
            kernels.xxh64_stripes(np.frombuffer(bytearray(self._rest), np.uint64), self._lanes)
        whole = len(data) // _STRIPE * _STRIPE
        kernels.xxh64_stripes(_aligned(data[:whole]), self._lanes)
        self._rest = data[whole:].tobytes()

    def update_zeros(self, count: int) -> None:
        """Take `count` zero bytes."""
        for begin in range(0, count, _PIECE):
            self.update(_ZEROS[: count - begin])

    def hexdigest(self) -> str:
        """Return the checksum of all bytes so far as 16 hex digits."""
        if self._size < _STRIPE:
            value = _PRIME_5
        else:
            lanes = [int(lane) for lane in self._lanes]
            value = sum(
                _rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)
            )
            for lane in lanes:
                value = (value ^ _round(0, lane)) * PRIME_1 + _PRIME_4 & _MASK
        value = _tail(value + self._size & _MASK, self._rest)
        value = (value ^ (value >> 33)) * PRIME_2 & _MASK
        value = (value ^ (value >> 29)) * _PRIME_3 & _MASK
        return f"{value ^ (value >> 32):016x}"


def file_checksum(path: Path) -> str:
    """Return the checksum of a file, read once in order with constant memory. Raises OSError."""
    checksum = Checksum()
    buffer = np.empty(_PIECE, dtype=np.uint8)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer.data):
            checksum.update(buffer[:count])
    return checksum.hexdigest()


def _aligned(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    words = data.view(np.uint64)
    return words if words.flags.aligned and words.flags.writeable else words.copy()


def _tail(value: int, rest: bytes) -> int:
    while len(rest) >= 8:
        word, rest = int.from_bytes(rest[:8], "little"), rest[8:]
        value = _rotate(value ^ _round(0, word), 27) * PRIME_1 + _PRIME_4 & _MASK
    if len(rest) >= 4:
        word, rest = int.from_bytes(rest[:4], "little"), rest[4:]
        value = _rotate(value ^ word * PRIME_1 & _MASK, 23) * PRIME_2 + _PRIME_3 & _MASK
    for byte in rest:
        value = _rotate(value ^ byte * _PRIME_5 & _MASK, 11) * PRIME_1 & _MASK
    return value


def _round(lane: int, word: int) -> int:
    return _rotate(lane + word * PRIME_2 & _MASK, 31) * PRIME_1 & _MASK


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _MASK
