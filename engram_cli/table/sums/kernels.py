"""Numba kernels of updates: entries of documents and kept records in, changed records out.

A record is int64 [1 + w]: the count of a row, and the sums of its vectors. All are integers, so no
order of work changes them. The entries are those of `table.inits.corpus.kernels`.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint64

from engram_cli.jit import kernel, sum_16, sum_32, sum_64
from engram_cli.table.inits.corpus.kernels import INT32_COUNTS, add_hot_row
from engram_cli.table.inits.kernels import normal


@kernel("int64(int32[::1], int32[::1], int64[::1])")
def touched(begins, others, rows):  # type: ignore[no-untyped-def]
    """Write the rows of a bucket that have entries on either side to `rows`; return how many.

    Row r has the entries begins[r] to begins[r + 1] - 1; a side without entries is all 0.
    """
    found = 0
    for r in range(rows.size):
        rows[found] = r
        found += int64((begins[r] < begins[r + 1]) | (others[r] < others[r + 1]))
        if found == rows.size:
            break
    return found


@kernel("void(int64[:, ::1], int64, int64[::1], int64[:, ::1])")
def load_records(records, first, rows, out):  # type: ignore[no-untyped-def]
    """Copy the records at `first` + rows [n] to `out` [n, 1 + w]."""
    for i in range(rows.size):
        source, target = records[first + rows[i]], out[i]
        for j in range(target.size):
            target[j] = source[j]


@kernel("void(int64[:, ::1], int64, int64[::1], int64[:, ::1])")
def store_records(records, first, rows, values):  # type: ignore[no-untyped-def]
    """Copy `values` [n, 1 + w] to the records at `first` + rows [n]."""
    for i in range(rows.size):
        source, target = values[i], records[first + rows[i]]
        for j in range(target.size):
            target[j] = source[j]


@kernel("void(uint8[:, ::1], int64, int64[::1], uint8[:, ::1])")
def load_bytes(lines, first, rows, out):  # type: ignore[no-untyped-def]
    """Copy the lines at `first` + rows [n] to `out` [n, bytes]."""
    for i in range(rows.size):
        out[i] = lines[first + rows[i]]


@kernel("void(uint8[:, ::1], int64, int64[::1], uint8[:, ::1])")
def store_bytes(lines, first, rows, values):  # type: ignore[no-untyped-def]
    """Copy `values` [n, bytes] to the lines at `first` + rows [n]."""
    for i in range(rows.size):
        lines[first + rows[i]] = values[i]


@kernel("void(uint32[::1], int32[::1], int64[::1], int16[:, ::1], int64, int64[:, ::1])")
def add_entries(values, begins, rows, vectors, sign, records):  # type: ignore[no-untyped-def]
    """Add `sign` x the entries of each of `rows` [n] of a bucket to `records` [n, 1 + w].

    `vectors` int16[V, W], W a multiple of 16 and at least w; an entry's token is a line of it.
    """
    width, wanted = vectors.shape[1], records.shape[1] - 1
    flat = vectors.reshape(vectors.size)
    narrow = np.empty(width, np.int32)
    wide = np.empty(wanted, np.int64)
    for i in range(rows.size):
        begin, end = int64(begins[rows[i]]), int64(begins[rows[i] + 1])
        if begin == end:
            continue
        target, count, at = records[i], int64(0), int64(0)
        while at + 64 <= width:
            count = sum_64(values, begin, end, flat, width, at, narrow)
            at += 64
        if at + 32 <= width:
            count = sum_32(values, begin, end, flat, width, at, narrow)
            at += 32
        if at < width:
            count = sum_16(values, begin, end, flat, width, at, narrow)
        target[0] += sign * count
        if count > INT32_COUNTS:
            wide[:] = 0
            add_hot_row(values, begin, end, flat, width, wide)
            for j in range(wanted):
                target[1 + j] += sign * wide[j]
        else:
            for j in range(wanted):
                target[1 + j] += sign * int64(narrow[j])


@kernel("void(int64[:, ::1], float64[::1], float64, float32[:, ::1])")
def finish_records(records, mean, scale, out):  # type: ignore[no-untyped-def]
    """Rows [n, w] of records: (sums / count - mean) * scale, zero where nothing fell."""
    for i in range(out.shape[0]):
        source, target = records[i], out[i]
        if source[0] == 0:
            for j in range(target.size):
                target[j] = 0
        else:
            share = 1.0 / float64(source[0])
            for j in range(target.size):
                target[j] = np.float32((float64(source[1 + j]) * share - mean[j]) * scale)


@kernel("int64(int64[:, ::1], int64)")
def first_impossible(records, largest):  # type: ignore[no-untyped-def]
    """Return the first record that no documents make, -1 if there is none.

    Those are counts below 0, and sums beyond count x `largest`.
    """
    for i in range(records.shape[0]):
        own = records[i]
        limit = float64(own[0]) * float64(largest)
        bad = own[0] < 0
        for j in range(1, own.size):
            bad |= abs(float64(own[j])) > limit
        if bad:
            return i
    return -1


@kernel("void(uint64, float32, int64[::1], int64, float32[::1], int16[:, ::1])")
def random_vectors(key, std, tokens, dim, buffer, out):  # type: ignore[no-untyped-def]
    """Write the vectors of `tokens` [n] to `out` [n, W], as `seeded_normal` draws them; `buffer`:
    2 x ceil(dim / 2) values."""
    pairs = uint64(buffer.size // 2)
    for i in range(tokens.size):
        normal(key, uint64(tokens[i]) * pairs, std, buffer)
        target = out[i]
        for j in range(dim):
            target[j] = np.int16(np.rint(buffer[j]))


@kernel("void(uint64[::1], int64[::1])")
def renumber_tokens(pairs, lines):  # type: ignore[no-untyped-def]
    """Put lines[token] in the place of the token of each of `pairs` [2 * n]."""
    for i in range(pairs.size // 2):
        value = pairs[2 * i + 1]
        line = uint64(lines[int64(value >> uint64(32))])
        pairs[2 * i + 1] = (line << uint64(32)) | (value & uint64(0xFFFFFFFF))
