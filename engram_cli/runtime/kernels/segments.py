"""Gradients of rows as Triton kernels: duplicates summed in a fixed order, and what is done there.

In: the rows of n gradient vectors in ascending order with the places of their vectors. The vectors
of one row are a segment. A segment is cut at the multiples of PIECE; each piece is summed in order,
then the pieces' sums are, so that long segments are summed by many programs and the bits are the
same every time. Twins: `row_gradients` and `row_gradients`. Everything is computed in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

PIECE = tl.constexpr(32)
_AHEAD = tl.constexpr(4)  # loads under way at once for a sum in order
_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _columns(DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The columns [1, D] of a block, and which of them a row has."""
    column = tl.arange(0, BLOCK_D)[None, :]
    return column, column < DIM


@triton.jit(do_not_specialize=["count"])
def pieces_kernel(
    partial,  # float32 [pieces, DIM]
    keys,  # [count] rows, ascending
    order,  # [count] places of their vectors
    values,  # [count, DIM] by VALUE_STRIDE
    count,
    DIM: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: multiples of PIECE from the first on. The sums of pieces that go on with a segment."""
    piece = tl.program_id(0) + 1
    first = piece * PIECE
    key = tl.load(keys + first)
    if tl.load(keys + first - 1) == key:
        column, within = _columns(DIM, BLOCK_D)
        total = tl.zeros([1, BLOCK_D], tl.float32)
        for begin in range(0, PIECE, _AHEAD):
            for ahead in tl.static_range(_AHEAD):
                place = first + begin + ahead + tl.arange(0, 1)
                inside = place < count
                same = inside & (tl.load(keys + place, mask=inside, other=-1) == key)
                at = tl.load(order + place, mask=same, other=0).to(tl.int64)
                valid = same[:, None] & within
                one = tl.load(values + at[:, None] * VALUE_STRIDE + column, mask=valid, other=0)
                total += one.to(tl.float32)
        line = piece.to(tl.int64) * DIM + tl.arange(0, 1)[:, None]
        tl.store(partial + line + column, total, mask=within)


@triton.jit
def _heads(keys, count, BLOCK_R: tl.constexpr):
    """The places [R] of a program, the rows there, and whether their segments begin there."""
    place = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = place < count
    key = tl.load(keys + place, mask=live, other=-1)
    before = tl.load(keys + place - 1, mask=live & (place > 0), other=-1)
    return place, key, live & (key != before)


@triton.jit
def _sum(
    place,
    key,
    head,
    keys,
    order,
    values,
    partial,
    count,
    DIM: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sums [R, D] of the segments that begin at `place`."""
    column, within = _columns(DIM, BLOCK_D)
    at = tl.load(order + place, mask=head, other=0).to(tl.int64)
    own = tl.load(
        values + at[:, None] * VALUE_STRIDE + column, mask=head[:, None] & within, other=0
    )
    total = own.to(tl.float32)
    end = tl.minimum((place // PIECE + 1) * PIECE, count)  # of the first piece
    after = place + 1
    inside = head & (after < end)
    more = inside & (tl.load(keys + after, mask=inside, other=-1) == key)
    while tl.max(more.to(tl.int32), 0) > 0:
        for ahead in tl.static_range(_AHEAD):
            inside = more & (after + ahead < end)
            more = inside & (tl.load(keys + after + ahead, mask=inside, other=-1) == key)
            at = tl.load(order + after + ahead, mask=more, other=0).to(tl.int64)
            valid = more[:, None] & within
            one = tl.load(values + at[:, None] * VALUE_STRIDE + column, mask=valid, other=0)
            total += one.to(tl.float32)
        after += _AHEAD
    piece = place // PIECE + 1
    inside = head & (piece * PIECE < count)
    more = inside & (tl.load(keys + piece * PIECE, mask=inside, other=-1) == key)
    while tl.max(more.to(tl.int32), 0) > 0:
        for ahead in tl.static_range(_AHEAD):
            first = (piece + ahead) * PIECE
            inside = more & (first < count)
            more = inside & (tl.load(keys + first, mask=inside, other=-1) == key)
            line = partial + (piece + ahead).to(tl.int64)[:, None] * DIM
            total += tl.load(line + column, mask=more[:, None] & within, other=0)
        piece += _AHEAD
    return total


@triton.jit(do_not_specialize=["count"])
def sums_kernel(
    out,  # [height, DIM], or float32 [segments, DIM] where TARGETS
    targets,  # int64 [count]: the line of `out` for a segment that begins there
    keys,
    order,
    values,
    partial,
    count,
    DIM: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    TARGETS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: blocks of R places. Writes the segments' sums to their rows, or one after another."""
    place, row, head = _heads(keys, count, BLOCK_R)
    total = _sum(place, row, head, keys, order, values, partial, count, DIM, VALUE_STRIDE, BLOCK_D)
    column, within = _columns(DIM, BLOCK_D)
    line = row.to(tl.int64)
    if TARGETS:
        line = tl.load(targets + place, mask=head, other=0)
    where = out + line[:, None] * DIM + column
    tl.store(where, total.to(out.dtype.element_ty), mask=head[:, None] & within)


@triton.jit(do_not_specialize=["count"])
def atomic_kernel(
    out,  # float32 [height, DIM]
    rows,  # int64 [count]
    values,
    count,
    DIM: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: blocks of R places. Adds each vector to its row, in whatever order."""
    column, within = _columns(DIM, BLOCK_D)
    place = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = place < count
    row = tl.load(rows + place, mask=live, other=0).to(tl.int64)
    valid = live[:, None] & within
    at = place.to(tl.int64)[:, None] * VALUE_STRIDE + column
    one = tl.load(values + at, mask=valid, other=0)
    tl.atomic_add(out + row[:, None] * DIM + column, one.to(tl.float32), mask=valid, sem="relaxed")


@triton.jit(do_not_specialize=["count"])
def adagrad_kernel(
    weight,  # [height, DIM] by WEIGHT_STRIDE
    sums,  # float32 [height]
    keys,
    order,
    values,
    partial,
    count,
    lr,
    eps,
    DIM: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: blocks of R places. One step of row-wise Adagrad for the segments' rows."""
    place, row, head = _heads(keys, count, BLOCK_R)
    column, within = _columns(DIM, BLOCK_D)
    valid = head[:, None] & within
    # Loaded before the sums, so that their waits pass together.
    at = weight + row.to(tl.int64)[:, None] * WEIGHT_STRIDE + column
    old = tl.load(at, mask=valid, other=0).to(tl.float32)
    summed = tl.load(sums + row, mask=head, other=0)
    total = _sum(place, row, head, keys, order, values, partial, count, DIM, VALUE_STRIDE, BLOCK_D)
    summed += tl.div_rn(tl.sum(total * total, 1), DIM + 0.0)
    tl.store(sums + row, summed, mask=head)
    divisor = tl.maximum(tl.sqrt_rn(summed) + eps, _TINY)
    change = tl.div_rn(total, tl.broadcast_to(divisor[:, None], total.shape)) * lr
    tl.store(at, (old - change).to(weight.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["count"])
def adam_kernel(
    weight,  # [height, DIM] by WEIGHT_STRIDE
    mean,  # float32 [height, DIM]
    square,  # float32 [height, DIM]
    steps,  # float32: how many steps there were, this one included
    keys,
    order,
    values,
    partial,
    count,
    lr,
    eps,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: blocks of R places. One step of Adam for the segments' rows alone."""
    place, row, head = _heads(keys, count, BLOCK_R)
    column, within = _columns(DIM, BLOCK_D)
    valid = head[:, None] & within
    at = row.to(tl.int64)[:, None] * DIM + column
    first = tl.load(mean + at, mask=valid, other=0)
    second = tl.load(square + at, mask=valid, other=0)
    where = weight + row.to(tl.int64)[:, None] * WEIGHT_STRIDE + column
    old = tl.load(where, mask=valid, other=0).to(tl.float32)
    total = _sum(place, row, head, keys, order, values, partial, count, DIM, VALUE_STRIDE, BLOCK_D)
    # In float64: 1 - BETA2 ** t has 4 digits in float32 at first.
    t = tl.load(steps).to(tl.float64)
    left1 = 1.0 - tl.exp(t * tl.full([], LOG_BETA1, tl.float64))
    left2 = 1.0 - tl.exp(t * tl.full([], LOG_BETA2, tl.float64))
    size = (tl.sqrt(left2) / left1).to(tl.float32) * lr
    first += (total - first) * (1 - BETA1)
    second += (total * total - second) * (1 - BETA2)
    tl.store(mean + at, first, mask=valid)
    tl.store(square + at, second, mask=valid)
    change = tl.div_rn(first, tl.sqrt_rn(second) + eps) * size
    tl.store(where, (old - change).to(weight.dtype.element_ty), mask=valid)
