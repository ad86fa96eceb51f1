"""What is done with sparse gradients before a step: duplicates added up, norms clipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engram_cli.runtime import ops
from engram_cli.runtime.torch_ops_rows import sparse_tensor


def coalesced(gradient: Tensor) -> Tensor:
    """The same sparse gradient [rows, dim] with each row once, ascending, added up in float32.

    The same bits every time; it waits for the device, which must say how many rows there are.
    """
    if gradient.is_coalesced():
        return gradient
    values = gradient._values()
    rows, sums = ops.sum_rows(values, gradient._indices()[0], gradient.shape[0])
    return sparse_tensor(rows, sums.to(values.dtype), gradient.shape, is_coalesced=True)


def clip_grad_norm(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients of `model` so that their common norm is at most `max_norm`; the norm.

    What torch.nn.utils.clip_grad_norm_ does, which takes no sparse gradients; these are coalesced.
    """
    values = []
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = coalesced(parameter.grad)
        own = parameter.grad
        values.append(own._values() if own.is_sparse else own)
    if not values:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(value, dtype=torch.float32) for value in values]
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([norm.to(norms[0].device) for norm in norms])
    )
    factor = (max_norm / (total + 1e-6)).clamp_max(1.0)
    for value in values:
        value.mul_(factor.to(value.device))
    return total
