"""Numba loops over the tokens of a call on a CPU: the hash, and the gate with its convolution.

They run without the interpreter lock. What torch does in two dozen passes over [B, T, d], each a
call, is one or two passes here, and for one token no more than a few microseconds. Everything is
float32. Arrays are contiguous; an empty one stands for "none". `hash_at` and `gate_at` take
addresses, 0 for "none": of a decode step, handing over arrays took most of the time.
"""

from __future__ import annotations

import math

import numpy as np
from numba import carray, float32, int32, int64

from engram_cli.jit import add_in_any_order, bits_of_float32, float32_of_bits, kernel
from engram_cli.runtime.tiers.host_gather_jit import pointer
from engram_cli.vocab.lookup import HOLE

_ZERO, _ONE, _MIN_DOT = np.float32(0), np.float32(1), np.float32(1e-6)
# exp(x) = 2**n * exp(r): n the integer next to x / ln 2, found by adding 1.5 * 2**23 (_ROUND).
_LEAST, _MOST = np.float32(-87), np.float32(88)
_PER_LN2, _ROUND, _ROUND_BITS = np.float32(1.44269504), np.float32(12582912), np.int32(0x4B400000)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P2, _P3, _P4, _P5, _P6 = (np.float32(1 / math.factorial(n)) for n in range(2, 7))

_FLOATS = "float32[:,:,::1]"  # hidden states and sums [B x T, S, d]
_MATRIX = "float32[:,::1]"


@kernel(
    "int64(int64[:,::1], int32[::1], int64[:,:,::1], int64, boolean[:,::1], int64[:,::1], "
    "int64[:,:,::1], int64[:,:,::1], int64[::1], int64, int64, "
    "int64[:,:,::1], int64[:,::1], int64[:,:,:,::1])"
)
def hash_call(
    ids,
    lookup,
    recent,
    known,
    dead,
    age,
    multipliers,
    columns,
    orders,
    filler,
    eos,
    tokens,
    older,
    rows,
):
    """Hash ids [B, T] (`reference.hash_call`); return -1, or the index of an id that is no token.

    `recent` [B, known or more, 2] the last compressed ids and how many tokens each saw. Writes
    `tokens` [B, T or more, 2], the same of these positions, `older` [B, N-1] and `rows`
    [L, B, T, C].
    """
    batch, count = ids.shape
    longest = multipliers.shape[2]
    heads = columns.shape[1] // orders.size
    gram = np.empty(longest, dtype=np.int64)
    for b in range(batch):
        seen = int64(0)
        for lag in range(1, longest):
            older[b, longest - 1 - lag] = recent[b, known - lag, 0] if lag <= known else int64(0)
        if known:
            seen = min(recent[b, known - 1, 1], longest - 1)
            if recent[b, known - 1, 0] == eos:
                seen = int64(0)
        for t in range(count):
            raw = ids[b, t]
            if raw < 0 or raw >= lookup.size:
                return b * count + t
            token = int64(lookup[raw])
            seen = min(seen + 1, longest)
            if token == HOLE or (dead.size and dead[b, t]):
                seen = int64(0)
            reach = min(seen, age[b, t] + 1) if age.size else seen
            tokens[b, t, 0], tokens[b, t, 1] = token, reach
            if token == eos:
                seen = int64(0)
            for lag in range(longest):
                if reach <= lag:
                    gram[lag] = filler
                elif lag <= t:
                    gram[lag] = tokens[b, t - lag, 0]
                else:
                    gram[lag] = older[b, longest - 1 + t - lag]
            for layer in range(columns.shape[0]):
                for place in range(orders.size):
                    mix = int64(0)
                    for lag in range(orders[place]):
                        mix ^= gram[lag] * multipliers[layer, place, lag]
                    for column in range(place * heads, (place + 1) * heads):
                        own = columns[layer, column]
                        rows[layer, b, t, column] = (mix ^ own[3]) % own[0] + own[2]
    return int64(-1)


@kernel()
def _exp(x):
    """Return exp(x), within 2 units in the last place, in a form that becomes vectors."""
    x = min(max(x, _LEAST), _MOST)
    shifted = x * _PER_LN2 + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = _ONE + r * (_ONE + r * (_P2 + r * (_P3 + r * (_P4 + r * (_P5 + r * _P6)))))
    exponent = int32(bits_of_float32(shifted) - _ROUND_BITS + int32(127))
    return p * float32_of_bits(int32(exponent << 23))


@kernel()
def _open(hidden, key, query_weight, key_weight, centred, eps):
    """Return the gate in 0..1 of a hidden state and a key, float32[d]."""
    queries = keys = products = _ZERO
    for c in range(hidden.size):
        q, k = hidden[c], key[c]
        queries = add_in_any_order(queries, q * q)
        keys = add_in_any_order(keys, k * k)
        weight = (query_weight[c] + centred) * (key_weight[c] + centred)
        products = add_in_any_order(products, q * k * weight)
    size = float32(hidden.size)
    norm = math.sqrt((queries / size + eps) * (keys / size + eps))
    dot = products / norm / math.sqrt(size)
    root = math.sqrt(max(abs(dot), _MIN_DOT))
    signed = root if dot > 0 else (-root if dot < 0 else dot)
    return float32(_ONE / (_ONE + math.exp(-signed)))


@kernel()
def _add(out, hidden, value, opened, alive, residual):
    """Write the gated value, 0 where not `alive`, plus `hidden` where `residual`."""
    if not alive:
        if residual:
            out[:] = hidden
        else:
            out[:] = _ZERO
    elif residual:
        for c in range(out.size):
            out[c] = opened * value[c] + hidden[c]
    else:
        for c in range(out.size):
            out[c] = opened * value[c]


@kernel()
def _add_tap(total, source, factor):
    for c in range(total.size):
        total[c] += source[c] * factor[c]


@kernel()
def _add_silu(out, x):
    for c in range(out.size):
        out[c] += x[c] / (_ONE + _exp(-x[c]))


@kernel(
    f"void(int64, int64, {_FLOATS}, {_MATRIX}, boolean[::1], {_MATRIX}, {_MATRIX}, {_MATRIX}, "
    f"float32, float32, float32, boolean, {_MATRIX}, {_MATRIX}, {_FLOATS})"
)
def open_gates(
    begin,
    end,
    hidden,
    projected,
    keep,
    query,
    key,
    norm,
    eps,
    norm_eps,
    centred,
    residual,
    gates,
    inputs,
    out,
):
    """Write the `gates` [n, S] of the tokens from `begin` to `end`.

    With a convolution, whose norm has the weight `norm` [S, d], write its `inputs` [n, S x d];
    without one write the sums `out` [n, S, d]. `projected` [n, S x d + d].
    """
    streams, width = query.shape
    for i in range(begin, end):
        value = projected[i, streams * width :]
        alive = keep.size == 0 or keep[i]
        squares = _ZERO
        if norm.size:
            for c in range(width):
                squares = add_in_any_order(squares, value[c] * value[c])
        for s in range(streams):
            state = hidden[i, s]
            opened = _ZERO
            if alive:
                own = projected[i, s * width : (s + 1) * width]
                opened = _open(state, own, query[s], key[s], centred, eps)
            gates[i, s] = opened
            if norm.size:
                mean = opened * opened * (squares / float32(width))
                factor = opened / float32(math.sqrt(mean + norm_eps)) if alive else _ZERO
                line, weight = inputs[i, s * width : (s + 1) * width], norm[s]
                for c in range(width):
                    line[c] = factor * value[c] * (weight[c] + centred)
                if not alive:  # also where the value is infinite
                    line[:] = _ZERO
            else:
                _add(out[i, s], state, value, opened, alive, residual)


@kernel(
    f"void(int64, int64, int64, {_FLOATS}, {_MATRIX}, boolean[::1], int64[::1], {_FLOATS}, "
    f"{_MATRIX}, int64, boolean, {_MATRIX}, {_MATRIX}, {_FLOATS})"
)
def convolve(
    begin,
    end,
    count,
    hidden,
    projected,
    keep,
    age,
    history,
    taps,
    dilation,
    residual,
    gates,
    inputs,
    out,
):
    """Write the sums `out` [n, S, d] of the tokens from `begin` to `end`, in lines of `count`.

    `inputs` [n, S x d] of all tokens up to `end` are there; `history` [B, reach, S x d] those
    before each line; `taps` [S x d, K].
    """
    streams, width = hidden.shape[1:]
    last = taps.shape[1] - 1
    by_tap = np.empty((last + 1, taps.shape[0]), dtype=np.float32)
    for tap in range(last + 1):
        for c in range(taps.shape[0]):
            by_tap[tap, c] = taps[c, tap]
    total = np.empty(taps.shape[0], dtype=np.float32)
    for i in range(begin, end):
        line, t = i // count, i % count
        alive = keep.size == 0 or keep[i]
        if alive:
            total[:] = _ZERO
            for tap in range(last + 1):
                distance = (last - tap) * dilation
                if age.size and age[i] < distance:
                    continue
                if t >= distance:
                    _add_tap(total, inputs[i - distance], by_tap[tap])
                elif history.size:
                    _add_tap(total, history[line, history.shape[1] + t - distance], by_tap[tap])
        value = projected[i, streams * width :]
        for s in range(streams):
            _add(out[i, s], hidden[i, s], value, gates[i, s], alive, residual)
            if alive:
                _add_silu(out[i, s], total[s * width : (s + 1) * width])


@kernel()
def _numbers(address, count):
    return carray(pointer(address), (count if address else int64(0),), np.int64)


@kernel(f"int64(int64[::1], {', '.join(['int64'] * 20)})")
def hash_at(
    orders,
    batch,
    count,
    known,
    recent_line,
    token_line,
    vocabulary,
    layers,
    longest,
    width,
    filler,
    eos,
    ids,
    lookup,
    recent,
    dead,
    age,
    multipliers,
    columns,
    tokens,
    outcome,
):
    """Do what `hash_call` does: ids [batch, count], `width` columns of `layers` layers.

    From one sequence to the next are `recent_line` positions of `recent`, `token_line` of `tokens`.
    At `outcome` there is memory for `older`, and then for `rows`.
    """
    older = batch * (longest - 1)
    rows = layers * batch * count * width
    return hash_call(
        carray(pointer(ids), (batch, count), np.int64),
        carray(pointer(lookup), (vocabulary,), np.int32),
        carray(pointer(recent), (batch if known else int64(0), recent_line, 2), np.int64),
        known,
        carray(pointer(dead), (batch if dead else int64(0), count), np.bool_),
        carray(pointer(age), (batch if age else int64(0), count), np.int64),
        carray(pointer(multipliers), (layers, orders.size, longest), np.int64),
        carray(pointer(columns), (layers, width, 4), np.int64),
        orders,
        filler,
        eos,
        carray(pointer(tokens), (batch, token_line, 2), np.int64),
        _numbers(outcome, older).reshape(batch, longest - 1),
        _numbers(outcome + 8 * older, rows).reshape(layers, batch, count, width),
    )


@kernel()
def _lines(address, lines, width):
    return carray(pointer(address), (lines if address else int64(0), width), np.float32)


@kernel(f"void({', '.join(['int64'] * 17)}, float32, float32, float32, boolean)")
def gate_at(
    batch,
    count,
    streams,
    width,
    taps_each,
    dilation,
    hidden,
    projected,
    keep,
    age,
    history,
    query,
    key,
    norm,
    taps,
    inputs,
    out,
    eps,
    norm_eps,
    centred,
    residual,
):
    """Do what `open_gates` and then `convolve` do, for all tokens [batch, count] in one thread."""
    tokens, wide = batch * count, streams * width
    states = carray(pointer(hidden), (tokens, streams, width), np.float32)
    sums = carray(pointer(out), (tokens, streams, width), np.float32)
    lines = _lines(projected, tokens, wide + width)
    flags = carray(pointer(keep), (tokens if keep else int64(0),), np.bool_)
    given = _lines(query, streams, width), _lines(key, streams, width), _lines(norm, streams, width)
    gates = np.empty((tokens, streams), dtype=np.float32)
    found = _lines(inputs, tokens, wide if norm else int64(0))
    open_gates(
        *(int64(0), tokens, states, lines, flags, *given, eps, norm_eps, centred, residual),
        *(gates, found, sums),
    )
    if norm:
        reach = (taps_each - 1) * dilation
        past = carray(pointer(history), (batch if history else int64(0), reach, wide), np.float32)
        convolve(
            *(int64(0), tokens, count, states, lines, flags, _numbers(age, tokens), past),
            *(_lines(taps, wide, taps_each), dilation, residual, gates, found, sums),
        )
