"""The backward of the short convolution as Triton kernels, and their launcher.

First the gradient before SiLU, with sums over columns by row; then, for a block of columns and a
range of tokens, what reaches the value, and the weights' sums, which a second stage adds up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_cli.runtime.kernels.conv import SIZES, read_input, seen_before, tap_weights
from engram_cli.runtime.kernels.tiles import (
    Tile,
    is_live,
    launch,
    load,
    norm_weight,
    parts_of,
    zeros,
)


@triton.jit
def _reached(token, place, here, lag, line, age):
    """Whether the token `lag` after is in the same line and document, [BLOCK_T]."""
    reached = here & (place + lag < line)
    if age is not None:
        reached = reached & (tl.load(age + token + lag, mask=reached, other=0) >= lag)
    return reached


@triton.jit(do_not_specialize=SIZES)
def conv_slope_kernel(
    conv_gradient,
    slope_parts,
    pull_parts,
    gradient,
    projected,
    norm,
    taps,
    keep,
    age,
    facts,
    tokens,
    rows,
    line,
    D: tl.constexpr,
    STREAMS: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    CENTRED: tl.constexpr,
    RANGE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradient before SiLU, cut like `conv_kernel`, and two kinds of sums over columns.

    `slope_parts` [blocks, rows]: the output's gradient times the value; `pull_parts` [blocks, TAPS,
    rows]: the gradient before SiLU times what a tap reads, the row's factor apart.
    """
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    stream = tl.program_id(1)
    inside = column < D
    kind = projected.dtype.element_ty
    weight = norm_weight(norm, stream * D + column, inside, CENTRED)[None, :]
    tapped = tap_weights(taps, stream * D + column, inside, STREAMS * D, TAPS)
    first = tl.program_id(2) * RANGE
    slopes = slope_parts + tl.program_id(0) * rows
    pulls = pull_parts + tl.program_id(0).to(tl.int64) * TAPS * rows
    for begin in range(first, tl.minimum(tokens, first + RANGE), BLOCK_T):
        index = begin + tl.arange(0, BLOCK_T)
        here = index < tokens
        place = index % line
        token = index.to(tl.int64)
        live = is_live(keep, token, here)
        row = token * STREAMS + stream
        at = row[:, None] * D + column[None, :]
        g = load(gradient + at, live[:, None] & inside[None, :])
        values = projected + token[:, None] * ((STREAMS + 1) * D) + (STREAMS * D + column)[None, :]
        total = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        window = ()
        for tap in tl.static_range(TAPS):
            lag = (TAPS - 1 - tap) * DILATION
            seen = seen_before(token, place, here, lag, age)
            v, normed = read_input(
                values, facts + rows, row, lag, weight, seen, inside, kind, D, STREAMS
            )
            total += normed.to(tl.float32) * tapped[tap]
            window = window + (v,)
        opened = tl.sigmoid(total)
        before = g * opened * (1.0 + total * (1.0 - opened))
        target = conv_gradient + at
        kept = here[:, None] & inside[None, :]
        tl.store(target, before.to(conv_gradient.dtype.element_ty), mask=kept)
        tl.store(slopes + row, tl.sum(g * window[TAPS - 1], 1), mask=here)
        before *= weight
        for tap in tl.static_range(TAPS):
            pull = tl.sum(before * tapped[tap] * window[tap], 1)
            tl.store(pulls + tap * rows + row, pull, mask=here)


@triton.jit(do_not_specialize=SIZES)
def conv_backward_kernel(
    value_gradient,
    norm_parts,
    tap_parts,
    conv_gradient,
    projected,
    norm,
    taps,
    age,
    facts,
    tokens,
    rows,
    line,
    D: tl.constexpr,
    STREAMS: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    CENTRED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the value's gradient through the convolution, BLOCK_D columns of a range of tokens.

    `norm_parts` [ranges, S, D] and `tap_parts` [ranges, TAPS, S, D] get the weights' sums.
    """
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < D
    part = tl.program_id(1).to(tl.int64)
    length = tl.cdiv(tl.cdiv(tokens, tl.num_programs(1)), BLOCK_T) * BLOCK_T
    kind = projected.dtype.element_ty
    norm_sums = zeros(STREAMS, BLOCK_T, BLOCK_D)
    tap_sums = zeros(STREAMS * TAPS, BLOCK_T, BLOCK_D)
    first = tl.program_id(1) * length
    for begin in range(first, tl.minimum(tokens, first + length), BLOCK_T):
        index = begin + tl.arange(0, BLOCK_T)
        here = index < tokens
        place = index % line
        token = index.to(tl.int64)
        mask = here[:, None] & inside[None, :]
        at = projected + token[:, None] * ((STREAMS + 1) * D) + (STREAMS * D + column)[None, :]
        v = load(at, mask)
        v_gradient = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        norm_added = ()
        tap_added = ()
        for stream in tl.static_range(STREAMS):
            row = token * STREAMS + stream
            weight = norm_weight(norm, stream * D + column, inside, CENTRED)[None, :]
            factor = load(facts + rows + row, here)[:, None]
            normed = (v * factor * weight).to(kind).to(tl.float32)
            carried = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
            for tap in tl.static_range(TAPS):
                lag = (TAPS - 1 - tap) * DILATION
                reached = _reached(token, place, here, lag, line, age)
                at = (row + lag * STREAMS)[:, None] * D + column[None, :]
                g = load(conv_gradient + at, reached[:, None] & inside[None, :])
                tapped = load(taps + (tap * STREAMS + stream) * D + column, inside)
                carried += g * tapped[None, :]
                tap_added = tap_added + (tap_sums[stream * TAPS + tap] + g * normed,)
            norm_added = norm_added + (norm_sums[stream] + carried * v * factor,)
            v_gradient += carried * factor * weight
        norm_sums = norm_added
        tap_sums = tap_added
        at = value_gradient + token[:, None] * D + column[None, :]
        tl.store(at, v_gradient, mask=mask)
    for stream in tl.static_range(STREAMS):
        at = norm_parts + (part * STREAMS + stream) * D + column
        tl.store(at, tl.sum(norm_sums[stream], 0), mask=inside)
        for tap in tl.static_range(TAPS):
            at = tap_parts + ((part * TAPS + tap) * STREAMS + stream) * D + column
            tl.store(at, tl.sum(tap_sums[stream * TAPS + tap], 0), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(
    slopes,
    factor_slopes,
    slope_parts,
    pull_parts,
    age,
    tokens,
    rows,
    line,
    STREAMS: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the gradients of each gate, and of each factor over the taps that read it; [BLOCK]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = index < rows
    place = index // STREAMS % line
    row = index.to(tl.int64)
    token = row // STREAMS
    slope = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(PARTS):
        slope += load(slope_parts + part * rows + row, here)
        for tap in tl.static_range(TAPS):
            lag = (TAPS - 1 - tap) * DILATION
            reached = _reached(token, place, here, lag, line, age)
            total += load(pull_parts + (part * TAPS + tap) * rows + row + lag * STREAMS, reached)
    tl.store(slopes + row, slope, mask=here)
    tl.store(factor_slopes + row, total, mask=here)


# From figures of an H200: 16 bytes a thread and load, a row of the tile to a warp; and for the 20
# sums a column that `conv_backward_kernel` holds, two columns a thread.
SLOPE = Tile(1, 256, 1, range=32)
BACKWARD = Tile(4, 128, 8, parts=26)


def conv_backward(
    gradient: Tensor,
    projected: Tensor,
    norm: Tensor,
    taps: Tensor,
    keep: Tensor | None,
    age: Tensor | None,
    facts: Tensor,
    *,
    line: int,
    dilation: int,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return gradients, given the output's [tokens, S, d].

    They are those of gates and of factors float32[rows], of the value through the convolution
    float32[tokens, d], of norm float32[S, d] and of taps float32[K, S x d].
    """
    tokens, streams, width = gradient.shape
    rows, count = tokens * streams, len(taps)
    single = {"dtype": torch.float32}
    slope, back = SLOPE.fit(width), BACKWARD.fit(width)
    blocks = parts_of(width, slope.columns)
    conv_gradient = torch.empty_like(gradient)
    slope_parts = gradient.new_empty((blocks, rows), **single)
    pull_parts = gradient.new_empty((blocks, count, rows), **single)
    slopes, factor_slopes = gradient.new_empty((2, rows), **single)
    value_gradient = gradient.new_empty((tokens, width), **single)
    norm_parts = gradient.new_empty((back.cut(tokens), streams, width), **single)
    tap_parts = gradient.new_empty((back.cut(tokens), count, streams, width), **single)
    sizes = (tokens, rows, line)
    options = {"STREAMS": streams, "TAPS": count, "DILATION": dilation}
    columns = options | {"D": width, "CENTRED": centred}
    launch(
        conv_slope_kernel,
        (blocks, streams, parts_of(tokens, slope.range)),
        *(conv_gradient, slope_parts, pull_parts),
        *(gradient, projected, norm, taps, keep, age, facts, *sizes),
        RANGE=slope.range,
        BLOCK_T=slope.tokens,
        BLOCK_D=slope.columns,
        num_warps=slope.warps,
        **columns,
    )
    launch(
        sum_kernel,
        (parts_of(rows, 128),),
        *(slopes, factor_slopes, slope_parts, pull_parts, age, *sizes),
        PARTS=blocks,
        BLOCK=128,
        num_warps=4,
        **options,
    )
    launch(
        conv_backward_kernel,
        (parts_of(width, back.columns), len(tap_parts)),
        *(value_gradient, norm_parts, tap_parts),
        *(conv_gradient, projected, norm, taps, age, facts, *sizes),
        BLOCK_T=back.tokens,
        BLOCK_D=back.columns,
        num_warps=back.warps,
        **columns,
    )
    taps_gradient = tap_parts.sum(0).view(count, streams * width)
    return slopes, factor_slopes, value_gradient, norm_parts.sum(0), taps_gradient
