"""The gated value's short convolution as a Triton kernel, and its launcher.

Its input at a token is value x factor x norm weight, the factor one number a row (the facts of
`kernels.gate`), so that nothing but the shared value is read again for earlier tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from engram_cli.runtime.kernels.tiles import Tile, launch, load, norm_weight, parts_of


@triton.jit
def seen_before(token, place, here, lag, age):
    """Whether the token `lag` before is in the same line and document, [BLOCK_T]."""
    seen = here & (place >= lag)
    if age is not None:
        seen = seen & (tl.load(age + token, mask=here, other=0) >= lag)
    return seen


@triton.jit
def tap_weights(taps, at, inside, stride, TAPS: tl.constexpr):
    """Return the weights of all taps, TAPS x [1, BLOCK_D]."""
    found = ()
    for tap in tl.static_range(TAPS):
        found = found + (load(taps + tap * stride + at, inside)[None, :],)
    return found


@triton.jit
def read_input(values, facts, row, lag, weight, seen, inside, KIND, D, STREAMS):
    """Return the value `lag` tokens earlier, and the input there, rounded to KIND."""
    v = load(values - lag * ((STREAMS + 1) * D), seen[:, None] & inside[None, :])
    factor = load(facts + row - lag * STREAMS, seen)
    return v, (v * factor[:, None] * weight).to(KIND)


# Sizes that change from call to call must not each have a kernel compiled for them.
SIZES = ["tokens", "rows", "line", "tail"]


@triton.jit(do_not_specialize=SIZES)
def conv_kernel(
    out,
    inputs,
    hidden,
    projected,
    history,
    norm,
    taps,
    keep,
    age,
    facts,
    tokens,
    rows,
    line,
    tail,
    D: tl.constexpr,
    STREAMS: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    CENTRED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RANGE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the output of RANGE tokens, BLOCK_D columns of a stream, [BLOCK_T, BLOCK_D] at a time.

    `inputs` gets each line's last `tail` inputs of the convolution.
    """
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    stream = tl.program_id(1)
    inside = column < D
    kind = projected.dtype.element_ty
    weight = norm_weight(norm, stream * D + column, inside, CENTRED)[None, :]
    tapped = tap_weights(taps, stream * D + column, inside, STREAMS * D, TAPS)
    first = tl.program_id(2) * RANGE
    for begin in range(first, tl.minimum(tokens, first + RANGE), BLOCK_T):
        # Divided as int32: an int64 division costs as much as the rest of the loop.
        index = begin + tl.arange(0, BLOCK_T)
        here = index < tokens
        mask = here[:, None] & inside[None, :]
        sequence = index // line
        place = index - sequence * line
        token = index.to(tl.int64)
        row = token * STREAMS + stream
        at = row[:, None] * D + column[None, :]
        values = projected + token[:, None] * ((STREAMS + 1) * D) + (STREAMS * D + column)[None, :]
        total = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        v = total
        for tap in tl.static_range(TAPS):
            lag = (TAPS - 1 - tap) * DILATION
            seen = seen_before(token, place, here, lag, age)
            v, normed = read_input(
                values, facts + rows, row, lag, weight, seen, inside, kind, D, STREAMS
            )
            if history is not None:
                earlier = here & (place < lag)
                if age is not None:
                    earlier = earlier & (tl.load(age + token, mask=here, other=0) >= lag)
                past = (sequence.to(tl.int64) + 1) * ((TAPS - 1) * DILATION) + place - lag
                source = history + (past * STREAMS + stream)[:, None] * D + column[None, :]
                found = tl.load(source, mask=earlier[:, None] & inside[None, :], other=0.0)
                normed = tl.where(earlier[:, None], found.to(kind), normed)
            total += normed.to(tl.float32) * tapped[tap]
            if tap == TAPS - 1:
                last = (begin + BLOCK_T - 1) % line
                if (last >= line - tail) | (last < BLOCK_T):
                    kept = here & (place >= line - tail)
                    slot = sequence.to(tl.int64) * tail + place - (line - tail)
                    target = inputs + (slot * STREAMS + stream)[:, None] * D + column[None, :]
                    tl.store(target, normed, mask=kept[:, None] & inside[None, :])
        y = load(facts + row, here)[:, None] * v + total * tl.sigmoid(total)
        if keep is not None:
            live = tl.load(keep + token, mask=here, other=0) != 0
            y = tl.where(live[:, None], y, 0.0)
        if RESIDUAL:
            y += load(hidden + at, mask)
        tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


# From figures of an H200: 16 bytes a thread and load, a row of the tile to a warp.
FORWARD = Tile(8, 256, 4, range=32)


def convolve(
    out: Tensor,
    hidden: Tensor,
    projected: Tensor,
    norm: Tensor,
    taps: Tensor,
    keep: Tensor | None,
    age: Tensor | None,
    history: Tensor | None,
    facts: Tensor,
    *,
    line: int,
    tail: int,
    dilation: int,
    centred: bool,
    residual: bool,
) -> Tensor:
    """Fill `out` [tokens, S, d] of lines of `line` tokens; return the last inputs [B, tail, S x d].

    `taps` float32[K, S x d]; the rest as `gate.gate` takes it.
    """
    tokens, streams, width = hidden.shape
    lines = tokens // line if line else 0
    inputs = projected.new_empty((lines, tail, streams * width))
    tile = FORWARD.fit(width)
    launch(
        conv_kernel,
        (parts_of(width, tile.columns), streams, parts_of(tokens, tile.range)),
        *(out, inputs, hidden, projected, history, norm, taps, keep, age, facts),
        *(tokens, tokens * streams, line, tail),
        D=width,
        STREAMS=streams,
        TAPS=len(taps),
        DILATION=dilation,
        CENTRED=centred,
        RESIDUAL=residual,
        RANGE=tile.range,
        BLOCK_T=tile.tokens,
        BLOCK_D=tile.columns,
        num_warps=tile.warps,
    )
    return inputs
