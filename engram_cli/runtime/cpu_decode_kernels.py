"""Numba loops over the few tokens of a decode step on a CPU, float32 or bfloat16.

`begin_at` takes token ids to the projections of all layers, `add_at` goes from these to a layer's
hidden states. Both read and write decode state where it lies. All arithmetic is float32, as in
`cpu_kernels`; of bfloat16 what is read is widened and what is written is rounded.
"""

from __future__ import annotations

import numpy as np
from numba import carray, float32, int32, int64, uint16

from engram_cli.jit import add_in_any_order, bits_of_float32, float32_of_bits, kernel
from engram_cli.runtime.cpu_kernels import convolve, hash_at, open_gates
from engram_cli.runtime.tiers.host_gather_jit import pointer


@kernel()
def _widened(stored):
    """Return the float32 of the bits of a bfloat16."""
    return float32_of_bits(int32(int32(stored) << 16))


@kernel()
def _rounded(value):
    """Return the bits of the bfloat16 next to a float32; ties go to even ones, a NaN stays one."""
    bits = bits_of_float32(value)
    if value != value:
        return uint16((bits >> 16) | 64)
    return uint16((bits + int32(0x7FFF) + ((bits >> 16) & 1)) >> 16)


@kernel()
def _floats(address, count, half):
    """Return float32[count] of numbers at an address, of bfloat16 a copy; none at 0."""
    count = count if address else int64(0)
    if not half:
        return carray(pointer(address), (count,), np.float32)
    stored = carray(pointer(address), (count,), np.uint16)
    found = np.empty(count, dtype=np.float32)
    for i in range(count):
        found[i] = _widened(stored[i])
    return found


@kernel()
def _dot(row, vector):
    total = float32(0)
    for c in range(vector.size):
        total = add_in_any_order(total, row[c] * vector[c])
    return total


@kernel()
def _dot_half(row, vector):
    total = float32(0)
    for c in range(vector.size):
        total = add_in_any_order(total, _widened(row[c]) * vector[c])
    return total


@kernel("void(int64, int64, int64, int64, boolean, float32[:,::1], float32[:,::1])")
def project_at(weight, bias, outputs, first, half, vectors, projected):
    """Write the columns `first` to `first + outputs` of `projected` [n, W].

    They are the products of `vectors` [n, E] with a weight [outputs, E], plus a bias, if not 0.
    """
    width = vectors.shape[1]
    added = _floats(bias, outputs, half)
    for row in range(outputs):
        start = added[row] if added.size else float32(0)
        if half:
            line = carray(pointer(weight + 2 * row * width), (width,), np.uint16)
            for i in range(len(vectors)):
                projected[i, first + row] = _dot_half(line, vectors[i]) + start
        else:
            own = carray(pointer(weight + 4 * row * width), (width,), np.float32)
            for i in range(len(vectors)):
                projected[i, first + row] = _dot(own, vectors[i]) + start


@kernel()
def _gather(table, rows, dim, half, vectors):
    """Write to `vectors` [n, C x dim] the `rows` [n, C] of a table."""
    size = int64(2) if half else int64(4)
    for i in range(len(rows)):
        for column in range(rows.shape[1]):
            row = _floats(table + size * dim * rows[i, column], dim, half)
            vectors[i, column * dim : (column + 1) * dim] = row


@kernel(
    "int64(int64[::1], int64[::1], int64[::1], int64[:,::1], boolean, boolean, "
    "int64, int64, int64, int64, int64, int64, int64, int64, int64)"
)
def begin_at(
    orders,
    hashed,
    tables,
    linears,
    half,
    table_half,
    dim,
    batch,
    count,
    known,
    line,
    ids,
    tokens,
    outcome,
    memory,
):
    """Hash ids [batch, count] and write the projections of all layers; return as `hash_call`.

    `tokens` [batch, line, 2] has `known` positions before the new ones, which are written. At
    `outcome` there is memory for `older` and rows [L, batch, count, C], at `memory` for the
    projections, float32[L, batch x count, W]. `hashed`: vocabulary, L, N, C, filler, eos, and where
    lookup, multipliers and columns are. `tables` [L]: where rows are, 0 where they are not read
    here. `linears` [m, 5]: layer, weight, bias, outputs, first column; W is that of the last.
    """
    layers, longest, columns = hashed[1], hashed[2], hashed[3]
    wrong = hash_at(
        *(orders, batch, count, known, line, line, hashed[0], layers, longest, columns),
        *(hashed[4], hashed[5], ids, hashed[6], tokens, int64(0), int64(0), hashed[7], hashed[8]),
        *(tokens + 16 * known, outcome),
    )
    if wrong >= 0 or not len(linears):
        return wrong
    many = batch * count
    width = linears[-1, 3] + linears[-1, 4]
    found = pointer(outcome + 8 * batch * (longest - 1))
    rows = carray(found, (layers, many, columns), np.int64)
    projected = carray(pointer(memory), (layers, many, width), np.float32)
    vectors = np.empty((many, columns * dim), dtype=np.float32)
    last = int64(-1)
    for i in range(len(linears)):
        layer = linears[i, 0]
        if layer != last:
            _gather(tables[layer], rows[layer], dim, table_half, vectors)
            last = layer
        own = projected[layer]
        project_at(linears[i, 1], linears[i, 2], linears[i, 3], linears[i, 4], half, vectors, own)
    return wrong


@kernel()
def _store(address, values, half):
    """Write float32[n] to an address, as float32 or rounded to bfloat16."""
    if half:
        stored = carray(pointer(address), (values.size,), np.uint16)
        for i in range(values.size):
            stored[i] = _rounded(values[i])
    else:
        copied = carray(pointer(address), (values.size,), np.float32)
        copied[:] = values


@kernel(f"void(int64[::1], float32[::1], boolean, {', '.join(['int64'] * 8)})")
def add_at(weights, rates, half, batch, count, known, line, hidden, projected, room, out):
    """Write to `out` the hidden states [batch, count, S, d] with a layer's memory added.

    `weights`: S, d, taps, dilation, and where query, key, norm and taps are; `rates`: eps, the
    convolution's, and 1 for centred norms. `projected` float32. `room` [batch, line, S x d] has
    `known` inputs of the convolution and gets those of the new positions; `count` is 1 where
    `batch` is not. 0 where the convolution reads no earlier position.
    """
    streams, width, taps_each, dilation = weights[0], weights[1], weights[2], weights[3]
    many, wide = batch * count, streams * width
    size = int64(2) if half else int64(4)
    states = _floats(hidden, many * wide, half).reshape(many, streams, width)
    lines = carray(pointer(projected), (many, wide + width), np.float32)
    query = _floats(weights[4], wide, half).reshape(streams, width)
    key = _floats(weights[5], wide, half).reshape(streams, width)
    has_conv = weights[6] != 0
    norm = _floats(weights[6], wide, half).reshape(streams if has_conv else int64(0), width)
    keep = np.empty(0, dtype=np.bool_)
    gates = np.empty((many, streams), dtype=np.float32)
    inputs = np.empty((many if has_conv else int64(0), wide), dtype=np.float32)
    if half:
        sums = np.empty((many, streams, width), dtype=np.float32)
    else:
        sums = carray(pointer(out), (many, streams, width), np.float32)
    given = keep, query, key, norm
    open_gates(
        *(int64(0), many, states, lines, *given, rates[0], rates[1], rates[2], True),
        *(gates, inputs, sums),
    )
    if has_conv:
        if half:
            for i in range(many):
                for c in range(wide):
                    inputs[i, c] = _widened(_rounded(inputs[i, c]))
        reach = (taps_each - 1) * dilation
        history = np.empty((batch if room else int64(0), reach, wide), dtype=np.float32)
        for b in range(len(history)):
            begin = room + size * wide * (b * line + known - reach)
            history[b] = _floats(begin, reach * wide, half).reshape(reach, wide)
        taps = _floats(weights[7], wide * taps_each, half).reshape(wide, taps_each)
        convolve(
            *(int64(0), many, count, states, lines, keep, np.empty(0, dtype=np.int64), history),
            *(taps, dilation, True, gates, inputs, sums),
        )
        if room:
            for i in range(many):
                b, t = i // count, i % count
                _store(room + size * wide * (b * line + known + t), inputs[i], half)
    if half:
        _store(out, sums.reshape(many * wide), half)
