"""Dense gradients of a table on a CPU, in memory that is touched only where rows have one.

torch writes zeros to all of a gradient first. NumPy's zeros are pages that the system gives when
they are first used, large ones where it has them: of 320,000 rows of 32 and 16,384 look-ups the
gradient takes 3 ms instead of 18 of one core.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engram_cli.runtime.graph_capture import is_plain_call, is_transformed


def look_up(weight: Tensor, rows: Tensor) -> Tensor:
    """Return `F.embedding(rows, weight)`: [..., dim] of weight [n, dim] and rows int64[...].

    Values are the same to the bit, and gradients of float32 and float64; those of halves are
    rounded once instead of at each addition.
    """
    wants_gradient = weight.requires_grad and torch.is_grad_enabled()
    on_cpu = weight.device.type == "cpu" and rows.device.type == "cpu"
    if not (wants_gradient and on_cpu and is_plain_call(weight, rows)) or is_transformed():
        return F.embedding(rows, weight)
    found: Tensor = _LookUp.apply(weight, rows)  # type: ignore[no-untyped-call]
    return found


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return F.embedding(rows, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        total = zeros(ctx.shape, gradient.dtype)
        values = gradient.reshape(-1, ctx.shape[1])
        return total.index_add_(0, rows.reshape(-1), values), None


def zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return zeros on the CPU whose memory is not touched yet."""
    untouched = np.zeros(shape.numel() * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(untouched).view(dtype).view(shape)
