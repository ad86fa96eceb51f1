"""Gradients of rows in plain torch: vectors with row numbers in, one sum for each row out.

Twins of `kernels.rows`. The order of a sum is part of the definition, so that both give the
same bits on every run: by row, then by place; a row's vectors are cut at the multiples of PIECE in
that order, each piece is summed, and then the pieces' sums are. Sums are float32 (of float64,
which only the twin takes, float64).
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 32


def sum_rows(values: Tensor, rows: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """int64[u] the rows that occur, ascending, and [u, dim] the sums of their vectors.

    `values` [n, dim] floats, `rows` int64[n] below `height`.
    """
    keys, order = rows.sort(stable=True)
    place = torch.arange(len(keys), device=rows.device)
    heads = torch.ones_like(keys, dtype=torch.bool)
    heads[1:] = keys[1:] != keys[:-1]
    cuts = heads | (place % PIECE == 0)
    wide = values[order].to(torch.promote_types(values.dtype, torch.float32))
    pieces = _add_up(wide, cuts.cumsum(0) - 1, int(cuts.sum()))
    sums = _add_up(pieces, (heads.cumsum(0) - 1)[cuts], int(heads.sum()))
    return keys[heads], sums


def dense_gradient(
    values: Tensor, rows: Tensor, height: int, dtype: torch.dtype, *, atomic: bool = False
) -> Tensor:
    """[height, dim] in `dtype`: the sums of `sum_rows` in their rows, zero elsewhere.

    Where `atomic` is set a kernel adds in whatever order; here it changes nothing.
    """
    found, sums = sum_rows(values, rows, height)
    out = torch.zeros((height, values.shape[1]), dtype=dtype, device=values.device)
    out[found] = sums.to(dtype)
    return out


def _add_up(values: Tensor, into: Tensor, lines: int) -> Tensor:
    out = values.new_zeros(lines, values.shape[1])
    return out.index_add_(0, into, values)
