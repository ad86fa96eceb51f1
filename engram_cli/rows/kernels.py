"""Numba kernels over the stored bytes of rows: gathering rows, and their products."""

from __future__ import annotations

import numpy as np
from numba import float64, int32, int64, uint64

from engram_cli.jit import copy_from, kernel, madvise, mincore, prefetch_at

_TILE = 1024  # rows whose addresses are kept at a time
_AHEAD = 32  # rows
_WILLNEED = 3  # MADV_WILLNEED of Linux, macOS and the BSDs


@kernel("void(float32[:,::1], float32[:,::1], float64[:,::1])")
def row_products(before, after, out):  # type: ignore[no-untyped-def]
    """a.a, b.b, a.b and |b - a|**2 of each row of a and b [n, dim] in `out` [n, 4], in float64."""
    for row in range(before.shape[0]):
        a, b = before[row], after[row]
        aa = bb = ab = dd = float64(0)
        for i in range(a.size):
            x, y = float64(a[i]), float64(b[i])
            aa += x * x
            bb += y * y
            ab += x * y
            dd += (y - x) * (y - x)
        out[row, 0], out[row, 1], out[row, 2], out[row, 3] = aa, bb, ab, dd


@kernel("void(uint64[::1], int64[::1], intp, intp, uint8[::1])")
def take_rows(bases, rows, chunk_rows, row_bytes, out):  # type: ignore[no-untyped-def]
    """Copy each row to `out` from its chunk, chunk i being mapped at `bases[i]`.

    Nothing is checked. A row's lines are asked for _AHEAD rows before it is copied.
    """
    addresses = np.empty(_TILE, np.uint64)
    for begin in range(0, rows.size, _TILE):
        wanted = rows[begin : min(begin + _TILE, rows.size)]
        target = out[begin * row_bytes :]
        for i in range(wanted.size):
            chunk = wanted[i] // chunk_rows
            offset = (wanted[i] - chunk * chunk_rows) * row_bytes
            addresses[i] = bases[chunk] + uint64(offset)
        for i in range(min(_AHEAD, wanted.size)):
            for line in range(0, row_bytes, 64):
                prefetch_at(addresses[i] + uint64(line))
        for i in range(wanted.size):
            if i + _AHEAD < wanted.size:
                for line in range(0, row_bytes, 64):
                    prefetch_at(addresses[i + _AHEAD] + uint64(line))
            copy_from(target, i * row_bytes, addresses[i], row_bytes)


@kernel("intp(uint64[::1], int64[::1], intp, intp, intp)")
def rows_in_memory(bases, rows, chunk_rows, row_bytes, page):  # type: ignore[no-untyped-def]
    """Return how many of the rows begin on a page that is in memory."""
    found = 0
    flag = np.empty(1, np.uint8)
    for i in range(rows.size):
        chunk = rows[i] // chunk_rows
        address = bases[chunk] + uint64((rows[i] - chunk * chunk_rows) * row_bytes)
        flag[0] = 1
        mincore(address & ~uint64(page - 1), 1, flag)
        found += int64(flag[0] & 1)
    return found


@kernel("void(uint64[::1], int64[::1], intp, intp, intp)")
def want_rows(bases, rows, chunk_rows, row_bytes, page):  # type: ignore[no-untyped-def]
    """Ask the system to read the pages of all rows, without waiting for any of them."""
    for i in range(rows.size):
        chunk = rows[i] // chunk_rows
        address = bases[chunk] + uint64((rows[i] - chunk * chunk_rows) * row_bytes)
        first = address & ~uint64(page - 1)
        madvise(first, int64(address - first) + row_bytes, int32(_WILLNEED))
