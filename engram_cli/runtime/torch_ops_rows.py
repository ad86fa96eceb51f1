"""Row gradients and optimiser steps as torch operators, which run the kernels of `kernels.rows`.

The operators are `engram::dense_row_gradient`, `engram::sum_rows`, `engram::adagrad_step` and
`engram::adam_step`. Steps skip the dispatcher where nothing needs it (`is_plain_call`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.graph_capture import is_plain_call
from engram_cli.runtime.row_gradients import Rate, rate_tensor, sparse_tensor


def gradient(
    vectors: Tensor, rows: Tensor, shape: torch.Size, dtype: torch.dtype, how: str
) -> Tensor:
    """Return the gradient of a table of `shape`, from vectors [..., C x dim] at rows int64[..., C].

    `how` is one of `tables.GRADIENTS`. A sparse gradient is not coalesced: it holds a row as often
    as it was looked up.
    """
    values = vectors.reshape(-1, shape[1])
    if torch.is_grad_enabled() and vectors.requires_grad:
        # create_graph: what follows would have no derivative.
        if how == "sparse":
            raise RuntimeAttachError(
                "a sparse gradient of rows has no derivative of its own",
                "attach without sparse_gradients for create_graph=True",
            )
        zeros = torch.zeros(shape, dtype=vectors.dtype, device=vectors.device)
        return zeros.index_add(0, rows.reshape(-1), values).to(dtype)
    if how == "sparse":
        return sparse_tensor(rows, values.to(dtype), shape)
    atomic = how == "atomic" and not torch.are_deterministic_algorithms_enabled()
    dense: Tensor = dense_row_gradient(values, rows.reshape(-1), shape[0], dtype, atomic)
    return dense


@torch.library.custom_op("engram::dense_row_gradient", mutates_args=())
def dense_row_gradient(
    values: Tensor, rows: Tensor, height: int, dtype: torch.dtype, atomic: bool
) -> Tensor:
    """`row_gradients.dense_gradient`."""
    from engram_cli.runtime.kernels import rows as kernels

    return kernels.dense_gradient(values, rows, height, dtype, atomic=atomic)


@dense_row_gradient.register_fake
def _(values, rows, height, dtype, atomic):  # type: ignore[no-untyped-def]
    return values.new_empty((height, values.shape[1]), dtype=dtype)


@torch.library.custom_op("engram::sum_rows", mutates_args=())
def sum_rows(values: Tensor, rows: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """`row_gradients.sum_rows`."""
    from engram_cli.runtime.kernels import rows as kernels

    return kernels.sum_rows(values, rows, height)


@sum_rows.register_fake
def _(values, rows, height):  # type: ignore[no-untyped-def]
    found = torch.library.get_ctx().new_dynamic_size()
    dim = values.shape[1]
    return rows.new_empty(found), values.new_empty((found, dim), dtype=torch.float32)


def sum_sorted(values: Tensor, keys: Tensor, order: Tensor, segments: Tensor, count: int) -> Tensor:
    """`row_gradients.sum_sorted`, which only a backward pass outside of any graph needs."""
    from engram_cli.runtime.kernels import rows as kernels

    return kernels.sum_sorted(values, keys, order, segments, count)


def _adagrad_step(
    weight: Tensor, sums: Tensor, values: Tensor, rows: Tensor, lr: Tensor, eps: float
) -> None:
    from engram_cli.runtime.kernels import rows as kernels

    kernels.adagrad_step(weight, sums, values, rows, lr, eps)


def _adam_step(
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    values: Tensor,
    rows: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    from engram_cli.runtime.kernels import rows as kernels

    kernels.adam_step(weight, (mean, square, steps), values, rows, lr, (beta1, beta2), eps)


adagrad_operator = torch.library.custom_op(
    "engram::adagrad_step", _adagrad_step, mutates_args=("weight", "sums")
)
adam_operator = torch.library.custom_op(
    "engram::adam_step", _adam_step, mutates_args=("weight", "mean", "square")
)


@adagrad_operator.register_fake
@adam_operator.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    return None


def adagrad_step(
    weight: Tensor, sums: Tensor, values: Tensor, rows: Tensor, lr: Rate, eps: float
) -> None:
    """`row_gradients.adagrad_step`."""
    lr = rate_tensor(lr, weight.device)
    if not is_plain_call(weight, values, rows):
        adagrad_operator(weight, sums, values, rows, lr, eps)
        return
    _adagrad_step(weight, sums, values, rows, lr, eps)
    torch.autograd.graph.increment_version((weight, sums))


def adam_step(
    weight: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    values: Tensor,
    rows: Tensor,
    lr: Rate,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """`row_gradients.adam_step`."""
    lr = rate_tensor(lr, weight.device)
    if not is_plain_call(weight, values, rows):
        adam_operator(weight, *state, values, rows, lr, *betas, eps)
        return
    _adam_step(weight, *state, values, rows, lr, *betas, eps)
    torch.autograd.graph.increment_version((weight, *state[:2]))
