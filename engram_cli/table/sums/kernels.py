"""Numba kernels of updates: which rows of a bucket change, and rows and records copied by number.

Records and entries are those of `table.inits.corpus.kernels`, whose `add_rows` changes records.
"""

from __future__ import annotations

from numba import float64, int64, uint64

from engram_cli.jit import kernel


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


_COPY = [f"void({item}[:, ::1], int64, int64[::1], {item}[:, ::1])" for item in ("uint8", "int64")]


@kernel(*_COPY)
def load_lines(lines, first, rows, out):  # type: ignore[no-untyped-def]
    """Copy the lines at `first` + rows [n], bytes of rows or records, to `out` [n, w]."""
    for i in range(rows.size):
        source, target = lines[first + rows[i]], out[i]
        for j in range(target.size):
            target[j] = source[j]


@kernel(*_COPY)
def store_lines(lines, first, rows, values):  # type: ignore[no-untyped-def]
    """Copy `values` [n, w] to the lines at `first` + rows [n]."""
    for i in range(rows.size):
        source, target = values[i], lines[first + rows[i]]
        for j in range(target.size):
            target[j] = source[j]


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


@kernel("void(uint64[::1], int64[::1])")
def renumber_tokens(pairs, lines):  # type: ignore[no-untyped-def]
    """Put lines[token] in the place of the token of each of `pairs` [2 * n]."""
    for i in range(pairs.size // 2):
        value = pairs[2 * i + 1]
        line = uint64(lines[int64(value >> uint64(32))])
        pairs[2 * i + 1] = (line << uint64(32)) | (value & uint64(0xFFFFFFFF))
