"""Gradients of rows and the steps of their optimisers as Triton kernels, and their launchers.

Duplicates are summed in a fixed order. In: the rows of n gradient vectors in ascending order with
the places of their vectors. The vectors of one row are a segment. A segment is cut at the multiples
of PIECE; each piece is summed in order, then the pieces' sums are, so that long segments are summed
by many programs and the bits are the same every time. Their twin is `row_gradients`.
Everything is computed in float32.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_cli.runtime.kernels.tiles import launch, parts_of, power_of_two

_VALUES = 256  # of a block: 8 a thread; 512 is as fast for float32, 7 % slower for bfloat16
PIECE = tl.constexpr(32)
_AHEAD = tl.constexpr(4)  # loads under way at once for a sum in order
_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _columns(DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the columns [1, D] of a block, and which of them a row has."""
    column = tl.arange(0, BLOCK_D)[None, :]
    return column, column < DIM


@triton.jit
def _vectors(values, order, place, here, within, column, VALUE_STRIDE: tl.constexpr):
    """Return the vectors float32[R, D] of the places [R] `here`, 0 elsewhere."""
    at = tl.load(order + place, mask=here, other=0).to(tl.int64)
    valid = here[:, None] & within
    found = tl.load(values + at[:, None] * VALUE_STRIDE + column, mask=valid, other=0)
    return found.to(tl.float32)


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
    """Sum the pieces that continue a segment. Grid: multiples of PIECE from the first on."""
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
                total += _vectors(values, order, place, same, within, column, VALUE_STRIDE)
        line = piece.to(tl.int64) * DIM + tl.arange(0, 1)[:, None]
        tl.store(partial + line + column, total, mask=within)


@triton.jit
def _heads(keys, count, BLOCK_R: tl.constexpr):
    """Return the places [R] of a program, their rows, and whether a segment begins there."""
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
    """Return the sums [R, D] of the segments that begin at `place`."""
    column, within = _columns(DIM, BLOCK_D)
    total = _vectors(values, order, place, head, within, column, VALUE_STRIDE)
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
    out,  # [height, DIM], or float32 [segments, DIM] by `targets`
    targets,  # int64 [count]: the line of `out` for a segment that begins there; or None
    keys,
    order,
    values,
    partial,
    count,
    DIM: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the segments' sums to their rows, or one after another. Grid: blocks of R places."""
    place, row, head = _heads(keys, count, BLOCK_R)
    total = _sum(place, row, head, keys, order, values, partial, count, DIM, VALUE_STRIDE, BLOCK_D)
    column, within = _columns(DIM, BLOCK_D)
    line = row.to(tl.int64)
    if targets is not None:
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
    """Add each vector to its row, in any order. Grid: blocks of R places."""
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
    lr,  # float64: one number, on the device, so that a CUDA graph reads it each time
    eps,
    DIM: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Take a step of row-wise Adagrad for the segments' rows. Grid: blocks of R places."""
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
    rate = tl.load(lr).to(tl.float32)
    change = tl.div_rn(total, tl.broadcast_to(divisor[:, None], total.shape)) * rate
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
    lr,  # float64: one number, on the device, so that a CUDA graph reads it each time
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
    """Take a step of Adam for the segments' rows alone. Grid: blocks of R places."""
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
    size = (tl.sqrt(left2) / left1).to(tl.float32) * tl.load(lr).to(tl.float32)
    first += (total - first) * (1 - BETA1)
    second += (total * total - second) * (1 - BETA2)
    tl.store(mean + at, first, mask=valid)
    tl.store(square + at, second, mask=valid)
    change = tl.div_rn(first, tl.sqrt_rn(second) + eps) * size
    tl.store(where, (old - change).to(weight.dtype.element_ty), mask=valid)


class Sorted(NamedTuple):
    """Holds gradient vectors in the order of their rows, as the kernels take them."""

    keys: Tensor
    order: Tensor
    values: Tensor
    partial: Tensor

    def launch(
        self, kernel: Any, *written: Any, rates: tuple[Any, ...] = (), **constants: Any
    ) -> None:
        """Launch a kernel over the segments: what it writes, then these vectors, then `rates`."""
        block, grid = _cut(*self.values.shape)
        stride = self.values.stride(0)
        given = (*written, *self, len(self.keys), *rates)
        launch(kernel, grid, *given, VALUE_STRIDE=stride, **block, **constants)


def dense_gradient(
    values: Tensor, rows: Tensor, height: int, dtype: torch.dtype, *, atomic: bool
) -> Tensor:
    """Return [height, dim] (`row_gradients.dense_gradient`)."""
    dim = values.shape[1]
    if atomic:
        out = torch.zeros((height, dim), dtype=torch.float32, device=values.device)
        values = _in_lines(values)
        if len(rows):
            (block, grid), stride = _cut(*values.shape), values.stride(0)
            launch(atomic_kernel, grid, out, rows, values, len(rows), VALUE_STRIDE=stride, **block)
        return out.to(dtype)
    out = torch.zeros((height, dim), dtype=dtype, device=values.device)
    if len(rows):
        _sort(values, rows, height).launch(sums_kernel, out, None)
    return out


def sum_rows(values: Tensor, rows: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Return int64[u] rows, ascending, and float32[u, dim] (`row_gradients.sum_rows`)."""
    if not len(rows):
        return rows.clone(), values.float().clone()
    keys, order = _order(rows, height)
    heads = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=heads[1:])
    found = keys[heads].long()
    return found, sum_sorted(values, keys, order, heads.cumsum(0) - 1, len(found))


def sum_sorted(values: Tensor, keys: Tensor, order: Tensor, segments: Tensor, count: int) -> Tensor:
    """Return float32[count, dim] (`row_gradients.sum_sorted`)."""
    sums = torch.empty((count, values.shape[1]), dtype=torch.float32, device=values.device)
    if count:
        _with_pieces(values, keys, order).launch(sums_kernel, sums, segments)
    return sums


def adagrad_step(
    weight: Tensor, sums: Tensor, values: Tensor, rows: Tensor, lr: Tensor, eps: float
) -> None:
    """Take a step of row-wise Adagrad, in place (`row_gradients.adagrad_step`)."""
    if len(rows):
        ordered, stride = _sort(values, rows, len(weight)), weight.stride(0)
        ordered.launch(adagrad_kernel, weight, sums, rates=(lr, eps), WEIGHT_STRIDE=stride)


def adam_step(
    weight: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    values: Tensor,
    rows: Tensor,
    lr: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Take a step of Adam, in place (`row_gradients.adam_step`)."""
    if not len(rows):
        return
    _sort(values, rows, len(weight)).launch(
        adam_kernel,
        *(weight, *state),
        rates=(lr, eps),
        WEIGHT_STRIDE=weight.stride(0),
        BETA1=betas[0],
        BETA2=betas[1],
        LOG_BETA1=math.log(betas[0]) if betas[0] else -math.inf,
        LOG_BETA2=math.log(betas[1]) if betas[1] else -math.inf,
    )


def _sort(values: Tensor, rows: Tensor, height: int) -> Sorted:
    """Sort n > 0 vectors by row, then by place, and sum the pieces that continue a segment."""
    return _with_pieces(values, *_order(rows, height))


def _order(rows: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Return rows ascending, and the places they come from, of equal rows in their order."""
    # Half the digits to sort by.
    narrow = rows.to(torch.int32) if height < 2**31 else rows
    return torch.sort(narrow, stable=True)


def _with_pieces(values: Tensor, keys: Tensor, order: Tensor) -> Sorted:
    """Sum the pieces of n > 0 sorted vectors that continue a segment."""
    values = _in_lines(values)
    count, dim = values.shape
    pieces = parts_of(count, PIECE.value)
    partial = torch.empty((pieces, dim), dtype=torch.float32, device=values.device)
    if pieces > 1:
        launch(
            pieces_kernel,
            (pieces - 1,),
            *(partial, keys, order, values, count),
            DIM=dim,
            VALUE_STRIDE=values.stride(0),
            BLOCK_D=power_of_two(dim),
            num_warps=1 if dim <= 1024 else 4,
        )
    return Sorted(keys, order, values, partial)


def _cut(count: int, dim: int) -> tuple[dict[str, Any], tuple[int]]:
    """Return the rows and values of a program, with its warps, and the grid."""
    width = power_of_two(dim)
    rows = max(1, _VALUES // width)
    warps = 1 if width <= 1024 else 4
    block = {"DIM": dim, "BLOCK_R": rows, "BLOCK_D": width, "num_warps": warps}
    # A product and a sum stay two roundings, as in the twins.
    return block | {"enable_fp_fusion": False}, (parts_of(count, rows),)


def _in_lines(values: Tensor) -> Tensor:
    """Return the same vectors, the values of each next to each other."""
    return values if values.stride(1) == 1 else values.contiguous()
