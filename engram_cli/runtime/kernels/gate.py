"""The gate as Triton kernels, forward and backward, and their launchers.

A row is one stream of one token, row = token x S + stream. Forward: one program a row, which it
holds in registers: sums, gate, output. What later kernels need of a row are five float32 numbers,
`Facts`. Backward: one program a token finds the gates' gradients; then a program for a block of
columns and a range of tokens, all streams of them, needs no sum across columns any more. Weight
gradients are summed in two stages in a fixed order, without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_cli.runtime.kernels.tiles import (
    Tile,
    is_live,
    launch,
    load,
    norm_weight,
    parts_of,
    row_plan,
    zeros,
)

# Facts [5, rows]: the gate; what a value is multiplied with before the convolution (without the
# norm's weight); the scaled dot product; the reciprocal roots of the hidden state and the key.
FACTS = 5


@triton.jit(do_not_specialize=["rows"])
def gate_kernel(
    facts,
    out,  # None where a convolution follows
    hidden,
    projected,
    query,
    key,
    keep,
    rows,
    eps,
    norm_eps,
    scale,
    D: tl.constexpr,
    STREAMS: tl.constexpr,
    CENTRED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the facts of a row, and its output [D] unless a convolution follows."""
    row = tl.program_id(0).to(tl.int64)
    token = row // STREAMS
    stream = row % STREAMS
    lane = tl.arange(0, BLOCK)
    keys = projected + token * (STREAMS + 1) * D + stream * D
    values = projected + token * (STREAMS + 1) * D + STREAMS * D
    live = True
    if keep is not None:
        live = tl.load(keep + token) != 0
    xx = tl.zeros([BLOCK], tl.float32)
    kk = tl.zeros([BLOCK], tl.float32)
    xk = tl.zeros([BLOCK], tl.float32)
    vv = tl.zeros([BLOCK], tl.float32)
    held_x = ()
    held_v = ()
    for chunk in tl.static_range((D + BLOCK - 1) // BLOCK):
        column = chunk * BLOCK + lane
        inside = column < D
        x = load(hidden + row * D + column, inside)
        k = load(keys + column, inside)
        v = load(values + column, inside)
        wq = norm_weight(query + stream * D, column, inside, CENTRED)
        wk = norm_weight(key + stream * D, column, inside, CENTRED)
        if out is not None:
            held_x = held_x + (x,)
            held_v = held_v + (v,)
        if keep is not None:
            x = tl.where(live, x, 0.0)
        xx += x * x
        kk += k * k
        xk += x * wq * (k * wk)
        if out is None:
            vv += v * v
    x_root = tl.rsqrt(tl.sum(xx) / D + eps)
    k_root = tl.rsqrt(tl.sum(kk) / D + eps)
    dot = tl.sum(xk) * x_root * k_root * scale
    root = tl.sqrt(tl.maximum(tl.abs(dot), 1e-6))
    gate = tl.sigmoid(tl.where(dot > 0, root, tl.where(dot < 0, -root, 0.0)))
    if keep is not None:
        gate = tl.where(live, gate, 0.0)
    tl.store(facts + row, gate)
    tl.store(facts + 2 * rows + row, dot)
    tl.store(facts + 3 * rows + row, x_root)
    tl.store(facts + 4 * rows + row, k_root)
    if out is None:
        factor = gate * tl.rsqrt(gate * gate * (tl.sum(vv) / D) + norm_eps)
        tl.store(facts + rows + row, factor)
    else:
        for chunk in tl.static_range((D + BLOCK - 1) // BLOCK):
            column = chunk * BLOCK + lane
            y = gate * held_v[chunk]
            if keep is not None:
                y = tl.where(live, y, 0.0)
            if RESIDUAL:
                y += held_x[chunk]
            tl.store(out + row * D + column, y.to(out.dtype.element_ty), mask=column < D)


@triton.jit
def gate_slope_kernel(
    slopes,
    gradient,
    projected,
    keep,
    D: tl.constexpr,
    STREAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Without a convolution, write the gradient of each gate of a token: output's times value."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    values = projected + token * (STREAMS + 1) * D + STREAMS * D
    sums = ()
    for _ in tl.static_range(STREAMS):
        sums = sums + (tl.zeros([BLOCK], tl.float32),)
    for chunk in tl.static_range((D + BLOCK - 1) // BLOCK):
        column = chunk * BLOCK + lane
        inside = column < D
        v = load(values + column, inside)
        added = ()
        for stream in tl.static_range(STREAMS):
            g = load(gradient + (token * STREAMS + stream) * D + column, inside)
            added = added + (sums[stream] + g * v,)
        sums = added
    live = True
    if keep is not None:
        live = tl.load(keep + token) != 0
    for stream in tl.static_range(STREAMS):
        slope = tl.sum(sums[stream])
        if keep is not None:
            slope = tl.where(live, slope, 0.0)
        tl.store(slopes + token * STREAMS + stream, slope)


@triton.jit(do_not_specialize=["tokens", "rows"])
def gate_backward_kernel(
    hidden_gradient,
    projected_gradient,
    parts,
    gradient,
    hidden,
    projected,
    value_gradient,
    query,
    key,
    keep,
    facts,
    slopes,
    factor_slopes,
    tokens,
    rows,
    scale,
    norm_eps,
    D: tl.constexpr,
    STREAMS: tl.constexpr,
    CENTRED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradients of hidden states and projections, BLOCK_D columns of a range of tokens.

    `value_gradient` [tokens, D] is what the convolution adds to the value's; `slopes` and
    `factor_slopes` [rows] are the gradients of gate and factor. `value_gradient` and
    `factor_slopes` are None without a convolution. `parts` [ranges, S, D] gets the sum over the
    range of the gradient of query weight x key weight.
    """
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (column < D)[None, :]
    part = tl.program_id(1)
    length = tl.cdiv(tl.cdiv(tokens, tl.num_programs(1)), BLOCK_T) * BLOCK_T
    weights = ()
    for stream in tl.static_range(STREAMS):
        wq = norm_weight(query + stream * D, column, column < D, CENTRED)
        wk = norm_weight(key + stream * D, column, column < D, CENTRED)
        weights = weights + ((wq * wk)[None, :],)
    sums = zeros(STREAMS, BLOCK_T, BLOCK_D)
    for begin in range(part * length, tl.minimum(tokens, part * length + length), BLOCK_T):
        token = (begin + tl.arange(0, BLOCK_T)).to(tl.int64)
        here = token < tokens
        live = is_live(keep, token, here)
        mask = here[:, None] & inside
        line = projected + token[:, None] * ((STREAMS + 1) * D) + column[None, :]
        v = load(line + STREAMS * D, mask)
        v_gradient = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        shrink = tl.zeros([BLOCK_T], tl.float32)
        if value_gradient is not None:
            v_gradient += load(value_gradient + token[:, None] * D + column[None, :], mask)
        added = ()
        for stream in tl.static_range(STREAMS):
            row = token * STREAMS + stream
            at = row[:, None] * D + column[None, :]
            g = load(gradient + at, mask)
            x = load(hidden + at, mask)
            k = load(line + stream * D, mask)
            gate = load(facts + row, here)
            dot = load(facts + 2 * rows + row, here)
            x_root = load(facts + 3 * rows + row, here)
            k_root = load(facts + 4 * rows + row, here)
            slope = load(slopes + row, here)
            if value_gradient is not None:
                factor = load(facts + rows + row, here)
                own = load(factor_slopes + row, here)
                ratio = factor / tl.where(gate > 0, gate, 1.0)
                slope += own * norm_eps * ratio * ratio * ratio
                shrink += own * factor * factor * factor
            size = tl.abs(dot)
            # Where the root is cut off it has no slope.
            slope *= gate * (1.0 - gate) * 0.5 * tl.rsqrt(tl.maximum(size, 1e-6))
            slope = tl.where((size >= 1e-6) & live, slope, 0.0)
            common = (slope * scale * x_root * k_root)[:, None]
            x_pull = (slope * dot * x_root * x_root / D)[:, None]
            k_pull = (slope * dot * k_root * k_root / D)[:, None]
            x_live = x
            g_live = g
            if keep is not None:
                x_live = tl.where(live[:, None], x, 0.0)
                g_live = tl.where(live[:, None], g, 0.0)
            x_gradient = common * k * weights[stream] - x_pull * x_live
            if RESIDUAL:
                x_gradient += g
            k_gradient = common * x_live * weights[stream] - k_pull * k
            added = added + (sums[stream] + common * x_live * k,)
            v_gradient += gate[:, None] * g_live
            kind = hidden_gradient.dtype.element_ty
            tl.store(hidden_gradient + at, x_gradient.to(kind), mask=mask)
            kind = projected_gradient.dtype.element_ty
            line_gradient = projected_gradient + token[:, None] * ((STREAMS + 1) * D)
            at = line_gradient + (stream * D + column)[None, :]
            tl.store(at, k_gradient.to(kind), mask=mask)
        sums = added
        if value_gradient is not None:
            v_gradient -= v * (shrink / D)[:, None]
        kind = projected_gradient.dtype.element_ty
        line_gradient = projected_gradient + token[:, None] * ((STREAMS + 1) * D)
        at = line_gradient + (STREAMS * D + column)[None, :]
        tl.store(at, v_gradient.to(kind), mask=mask)
    for stream in tl.static_range(STREAMS):
        at = parts + (part * STREAMS + stream).to(tl.int64) * D + column
        tl.store(at, tl.sum(sums[stream], 0), mask=column < D)


# From figures of an H200: 16 bytes a thread and load, a row of the tile to a warp; two waves.
BACKWARD = Tile(2, 256, 2, parts=79)


def gate(
    out: Tensor | None,
    hidden: Tensor,
    projected: Tensor,
    query: Tensor,
    key: Tensor,
    keep: Tensor | None,
    *,
    eps: float,
    norm_eps: float,
    centred: bool,
    residual: bool,
) -> Tensor:
    """Return the facts float32[5, rows] of hidden [tokens, S, d] and projected [tokens, S x d + d].

    `out` [tokens, S, d] is filled, unless None: then a convolution follows.
    """
    tokens, streams, width = hidden.shape
    facts = hidden.new_empty((FACTS, tokens * streams), dtype=torch.float32)
    block, warps = row_plan(width, held=out is not None)
    launch(
        gate_kernel,
        (tokens * streams,),
        *(facts, out, hidden, projected, query, key, keep),
        *(tokens * streams, eps, norm_eps, width**-0.5),
        D=width,
        STREAMS=streams,
        CENTRED=centred,
        RESIDUAL=residual,
        BLOCK=block,
        num_warps=warps,
    )
    return facts


def gate_slopes(gradient: Tensor, projected: Tensor, keep: Tensor | None) -> Tensor:
    """Return the gates' gradients float32[rows] of the output's [tokens, S, d]; no convolution."""
    tokens, streams, width = gradient.shape
    slopes = gradient.new_empty(tokens * streams, dtype=torch.float32)
    block, warps = row_plan(width, held=False)
    sizes = {"D": width, "STREAMS": streams, "BLOCK": block}
    launch(
        gate_slope_kernel, (tokens,), slopes, gradient, projected, keep, **sizes, num_warps=warps
    )
    return slopes


def gate_backward(
    gradient: Tensor,
    hidden: Tensor,
    projected: Tensor,
    query: Tensor,
    key: Tensor,
    keep: Tensor | None,
    facts: Tensor,
    slopes: Tensor,
    conv: tuple[Tensor, Tensor] | None,
    *,
    norm_eps: float,
    centred: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, projected, and float32[S, d] of query weight x key weight.

    `conv`: what the convolution adds to the value's gradient, and the gradients of the factors.
    """
    tokens, streams, width = hidden.shape
    tile = BACKWARD.fit(width)
    parts = hidden.new_empty((tile.cut(tokens), streams, width), dtype=torch.float32)
    gradients = torch.empty_like(hidden), torch.empty_like(projected), parts
    value_gradient, factor_slopes = conv or (None, None)
    launch(
        gate_backward_kernel,
        (parts_of(width, tile.columns), len(parts)),
        *(*gradients, gradient, hidden, projected, value_gradient, query, key, keep),
        *(facts, slopes, factor_slopes),
        *(tokens, tokens * streams, width**-0.5, norm_eps),
        D=width,
        STREAMS=streams,
        CENTRED=centred,
        RESIDUAL=residual,
        BLOCK_T=tile.tokens,
        BLOCK_D=tile.columns,
        num_warps=tile.warps,
    )
    return gradients[0], gradients[1], parts.sum(0)
