"""Kernels that look for faults in stored codes: the largest code of a row, codes at the limit.

All of them become vector instructions, and read memory faster than a file gives it.
`tests/table/scan/plain.py` has the plain twins.
"""

from __future__ import annotations

from numba import int64, uint8, uint16, uint32, uint64

from engram_cli.jit import kernel
from engram_cli.rows.checksum import PRIME_1

_RUN = 255  # codes whose number fits a byte, so that one instruction counts many
_LOW = 0xFFFFFFFF


@kernel("void(uint8[:, ::1], uint8, uint8[::1])")
def largest_of_bytes(codes, mask, largest):  # type: ignore[no-untyped-def]
    """Write the largest `code & mask` of each row of codes [n, width] to `largest` [n]."""
    for row in range(codes.shape[0]):
        most = uint8(0)
        for i in range(codes.shape[1]):
            code = uint8(codes[row, i] & mask)
            most = code if code > most else most
        largest[row] = most


@kernel("void(uint16[:, ::1], uint16, uint16[::1])")
def largest_of_halves(codes, mask, largest):  # type: ignore[no-untyped-def]
    """Do as `largest_of_bytes` for codes of 16 bits."""
    for row in range(codes.shape[0]):
        most = uint16(0)
        for i in range(codes.shape[1]):
            code = uint16(codes[row, i] & mask)
            most = code if code > most else most
        largest[row] = most


@kernel("void(uint32[:, ::1], uint32, uint32[::1])")
def largest_of_words(codes, mask, largest):  # type: ignore[no-untyped-def]
    """Do as `largest_of_bytes` for codes of 32 bits."""
    for row in range(codes.shape[0]):
        most = uint32(0)
        for i in range(codes.shape[1]):
            code = uint32(codes[row, i] & mask)
            most = code if code > most else most
        largest[row] = most


@kernel("int64(uint8[:, ::1], intp, uint8, uint8)")
def count_of(codes, every, mask, wanted):  # type: ignore[no-untyped-def]
    """Return how many of `codes & mask` are `wanted`, in one row of `every` of codes [n, width]."""
    total = int64(0)
    for row in range(0, codes.shape[0], every):
        for first in range(0, codes.shape[1], _RUN):
            run = codes[row, first : first + _RUN]
            count = uint8(0)
            for i in range(run.size):
                count = uint8(count + uint8(uint8(run[i] & mask) == wanted))
            total += int64(count)
    return total


@kernel("uint64(uint64[::1], uint64[::1], intp, uint64)")
def digest(words, keys, every, seed):  # type: ignore[no-untyped-def]
    """Return a digest of `words`, of one run of keys.size of them in `every`.

    The words of a run become a sum of products of 32 bits, which is scrambled. Equal digests say
    that contents are likely equal.
    """
    value = seed
    for first in range(0, words.size, keys.size * every):
        run = words[first : first + keys.size]
        total = uint64(run.size)
        for i in range(run.size):
            word = run[i] ^ keys[i]
            total += run[i] + (word & uint64(_LOW)) * (word >> uint64(32))
        value = (value ^ total) * uint64(PRIME_1)
        value ^= value >> uint64(29)
    return value
