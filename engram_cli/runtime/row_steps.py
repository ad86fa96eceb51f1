"""Optimiser steps for the rows that have a gradient, in plain torch: twins of `kernels.rows`.

In: a table, its state, and gradient vectors with their row numbers, a row as often as it occurred.
The table and its state are changed in place, in no other rows. Computed in float32, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engram_cli.runtime.row_gradients import sum_rows

_TINY = torch.finfo(torch.float32).tiny


def adagrad_step(
    weight: Tensor, sums: Tensor, values: Tensor, rows: Tensor, lr: float, eps: float
) -> None:
    """One step of row-wise Adagrad: `sums` float32[rows] are a row's mean squares so far.

    sum += mean(g^2), row -= lr g / (sqrt(sum) + eps), g the sum of a row's `values` [n, dim].
    """
    found, gradient = sum_rows(values, rows, len(weight))
    summed = sums[found] + gradient.square().mean(dim=1)
    sums[found] = summed
    change = adagrad_change(gradient, summed, lr, eps)
    weight[found] = (weight[found].float() - change).to(weight.dtype)


def adagrad_change(gradient: Tensor, sums: Tensor, lr: float, eps: float) -> Tensor:
    """[n, dim]: what Adagrad takes from rows; zero where the gradient is."""
    divisor = (sums.sqrt() + eps).clamp_min(_TINY)
    return gradient / divisor[:, None] * lr


def adam_step(
    weight: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    values: Tensor,
    rows: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of Adam for the rows that have a gradient: the arithmetic of torch's SparseAdam.

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
