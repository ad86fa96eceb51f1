"""Launching the kernels of `segments`: sorted rows, how a launch is cut, where the sums go."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engram_cli.runtime.kernels import segments
from engram_cli.runtime.kernels.tiles import launch, parts_of, power_of_two

WIDEST = 8192  # values of a row that one block holds
_VALUES = 256  # of a block: 8 a thread; 512 is as fast for float32, 7 % slower for bfloat16


class Sorted(NamedTuple):
    """Gradient vectors in the order of their rows, as the kernels take them."""

    keys: Tensor
    order: Tensor
    values: Tensor
    partial: Tensor

    @property
    def count(self) -> int:
        """How many vectors there are."""
        return len(self.keys)


def dense_gradient(
    values: Tensor, rows: Tensor, height: int, dtype: torch.dtype, *, atomic: bool
) -> Tensor:
    """[height, dim]: `row_gradients.dense_gradient`."""
    dim = values.shape[1]
    if atomic:
        out = torch.zeros((height, dim), dtype=torch.float32, device=values.device)
        values = _in_lines(values)
        if len(rows):
            block, grid = _cut(len(rows), dim)
            launch(
                segments.atomic_kernel,
                grid,
                out,
                rows,
                values,
                len(rows),
                DIM=dim,
                VALUE_STRIDE=values.stride(0),
                **block,
            )
        return out.to(dtype)
    out = torch.zeros((height, dim), dtype=dtype, device=values.device)
    if len(rows):
        _write_sums(out, None, _sort(values, rows, height))
    return out


def sum_rows(values: Tensor, rows: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """int64[u] rows, ascending, and float32 [u, dim]: `row_gradients.sum_rows`."""
    if not len(rows):
        return rows.clone(), values.float().clone()
    ordered = _sort(values, rows, height)
    keys = ordered.keys
    heads = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=heads[1:])
    found = keys[heads].long()
    sums = torch.empty((len(found), values.shape[1]), dtype=torch.float32, device=values.device)
    _write_sums(sums, heads.cumsum(0) - 1, ordered)
    return found, sums


def adagrad_step(
    weight: Tensor, sums: Tensor, values: Tensor, rows: Tensor, lr: float, eps: float
) -> None:
    """`row_gradients.adagrad_step`, in place."""
    if not len(rows):
        return
    ordered = _sort(values, rows, len(weight))
    block, grid = _cut(ordered.count, weight.shape[1])
    launch(
        segments.adagrad_kernel,
        grid,
        weight,
        sums,
        *ordered,
        ordered.count,
        lr,
        eps,
        **_shape_of(weight, ordered),
        **block,
    )


def adam_step(
    weight: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    values: Tensor,
    rows: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """`row_gradients.adam_step`, in place."""
    if not len(rows):
        return
    ordered = _sort(values, rows, len(weight))
    block, grid = _cut(ordered.count, weight.shape[1])
    launch(
        segments.adam_kernel,
        grid,
        weight,
        *state,
        *ordered,
        ordered.count,
        lr,
        eps,
        BETA1=betas[0],
        BETA2=betas[1],
        LOG_BETA1=math.log(betas[0]) if betas[0] else -math.inf,
        LOG_BETA2=math.log(betas[1]) if betas[1] else -math.inf,
        **_shape_of(weight, ordered),
        **block,
    )


def _sort(values: Tensor, rows: Tensor, height: int) -> Sorted:
    """Sort n > 0 vectors by row, then by place, and sum the pieces that go on with a segment."""
    # Half the digits to sort by.
    narrow = rows.to(torch.int32) if height < 2**31 else rows
    keys, order = torch.sort(narrow, stable=True)
    values = _in_lines(values)
    count, dim = values.shape
    pieces = parts_of(count, segments.PIECE.value)
    partial = torch.empty((pieces, dim), dtype=torch.float32, device=values.device)
    ordered = Sorted(keys, order, values, partial)
    if pieces > 1:
        launch(
            segments.pieces_kernel,
            (pieces - 1,),
            partial,
            keys,
            order,
            values,
            count,
            DIM=dim,
            VALUE_STRIDE=values.stride(0),
            BLOCK_D=power_of_two(dim),
            num_warps=1 if dim <= 1024 else 4,
        )
    return ordered


def _write_sums(out: Tensor, targets: Tensor | None, ordered: Sorted) -> None:
    dim = out.shape[1]
    block, grid = _cut(ordered.count, dim)
    launch(
        segments.sums_kernel,
        grid,
        out,
        ordered.order if targets is None else targets,
        *ordered,
        ordered.count,
        DIM=dim,
        VALUE_STRIDE=ordered.values.stride(0),
        TARGETS=targets is not None,
        **block,
    )


def _shape_of(weight: Tensor, ordered: Sorted) -> dict[str, int]:
    return {
        "DIM": weight.shape[1],
        "VALUE_STRIDE": ordered.values.stride(0),
        "WEIGHT_STRIDE": weight.stride(0),
    }


def _cut(count: int, dim: int) -> tuple[dict[str, Any], tuple[int]]:
    """Rows and values a program with its warps, and the grid."""
    width = power_of_two(dim)
    rows = max(1, _VALUES // width)
    warps = 1 if width <= 1024 else 4
    block = {"BLOCK_R": rows, "BLOCK_D": width, "num_warps": warps}
    # A product and a sum stay two roundings, as in the twins.
    return block | {"enable_fp_fusion": False}, (parts_of(count, rows),)


def _in_lines(values: Tensor) -> Tensor:
    """The same vectors, the values of each next to each other."""
    return values if values.stride(1) == 1 else values.contiguous()
