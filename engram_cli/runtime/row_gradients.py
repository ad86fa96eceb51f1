"""Sums of row gradients, and the optimiser steps that use them, in plain torch.

The kernels of `kernels.rows` must equal these functions. The order of a sum is part of the
definition, so that both give the same bits on every run: by row, then by place. A row's vectors are
cut at the multiples of PIECE in that order; each piece is summed, then the pieces' sums. Sums are
float32; those of float64, which no kernel takes, are float64. Steps change the table and its state
in place, in the rows that have a gradient; they are computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 32
Rate = float | Tensor  # a learning rate, a number or float64 [] on the rows' device
_TINY = torch.finfo(torch.float32).tiny


def rate_tensor(rate: Rate, device: torch.device) -> Tensor:
    """Return a learning rate as float64 [] on `device`."""
    if isinstance(rate, Tensor):
        return rate
    return torch.full((), rate, dtype=torch.float64, device=device)


def sum_rows(values: Tensor, rows: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Return int64[u] the rows that occur, ascending, and [u, dim] the sums of their vectors.

    `values` [n, dim] floats, `rows` int64[n] below `height`.
    """
    keys, order = rows.sort(stable=True)
    heads = torch.ones_like(keys, dtype=torch.bool)
    heads[1:] = keys[1:] != keys[:-1]
    found = keys[heads]
    return found, sum_sorted(values, keys, order, heads.cumsum(0) - 1, len(found))


def sum_sorted(values: Tensor, keys: Tensor, order: Tensor, segments: Tensor, count: int) -> Tensor:
    """Return [count, dim]: the sums of the vectors whose keys are equal, in the order of the keys.

    `keys` int[n] ascending, those of values[order]; `segments` int64[n]: which of the `count`
    distinct keys each is.
    """
    place = torch.arange(len(keys), device=keys.device)
    cuts = torch.ones_like(keys, dtype=torch.bool)
    cuts[1:] = (keys[1:] != keys[:-1]) | (place[1:] % PIECE == 0)
    wide = values[order].to(torch.promote_types(values.dtype, torch.float32))
    pieces = _add_up(wide, cuts.cumsum(0) - 1, int(cuts.sum()))
    return _add_up(pieces, segments[cuts], count)


def dense_gradient(
    values: Tensor, rows: Tensor, height: int, dtype: torch.dtype, *, atomic: bool = False
) -> Tensor:
    """Return [height, dim] in `dtype`: the sums of `sum_rows` in their rows, zero elsewhere.

    Where `atomic` is set a kernel adds in whatever order; here it changes nothing.
    """
    found, sums = sum_rows(values, rows, height)
    out = torch.zeros((height, values.shape[1]), dtype=dtype, device=values.device)
    out[found] = sums.to(dtype)
    return out


def sparse_tensor(
    rows: Tensor, values: Tensor, shape: torch.Size, *, is_coalesced: bool = False
) -> Tensor:
    """Return a sparse tensor of `values` [n, dim] at n `rows` int64, which are not checked."""
    # torch.sparse_coo_tensor warns about unchecked rows even with check_invariants=False. Called
    # by its overload, the operator takes 3 us of a host, not 5.
    found: Tensor = torch.ops.aten._sparse_coo_tensor_unsafe.default(
        rows.reshape(1, -1), values, shape, is_coalesced=is_coalesced
    )
    return found


def _add_up(values: Tensor, into: Tensor, lines: int) -> Tensor:
    out = values.new_zeros(lines, values.shape[1])
    return out.index_add_(0, into, values)


def adagrad_step(
    weight: Tensor, sums: Tensor, values: Tensor, rows: Tensor, lr: Rate, eps: float
) -> None:
    """Take one step of row-wise Adagrad: `sums` float32[rows] are a row's mean squares so far.

    sum += mean(g^2), row -= lr g / (sqrt(sum) + eps), g the sum of a row's `values` [n, dim].
    """
    found, gradient = sum_rows(values, rows, len(weight))
    summed = sums[found] + gradient.square().mean(dim=1)
    sums[found] = summed
    change = adagrad_change(gradient, summed, lr, eps)
    weight[found] = (weight[found].float() - change).to(weight.dtype)


def adagrad_change(gradient: Tensor, sums: Tensor, lr: Rate, eps: float) -> Tensor:
    """Return [n, dim]: what Adagrad takes from rows; zero where the gradient is."""
    divisor = (sums.sqrt() + eps).clamp_min(_TINY)
    return gradient / divisor[:, None] * lr


def adam_step(
    weight: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    values: Tensor,
    rows: Tensor,
    lr: Rate,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Take one step of Adam for the rows that have a gradient, as torch's SparseAdam does.

    `state`: mean and square float32 [rows, dim], and float32 how many steps there were with this.
    """
    mean, square, steps = state
    found, gradient = sum_rows(values, rows, len(weight))
    first = mean[found] + (gradient - mean[found]) * (1 - betas[0])
    second = square[found] + (gradient.square() - square[found]) * (1 - betas[1])
    mean[found], square[found] = first, second
    left = [1 - beta ** steps.double() for beta in betas]
    change = first / (second.sqrt() + eps) * ((left[1].sqrt() / left[0]).float() * lr)
    weight[found] = (weight[found].float() - change).to(weight.dtype)
