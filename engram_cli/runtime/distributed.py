"""Rows in distributed training where no wrapper looks after them (FSDP2 with the rows left out).

Every process holds all rows and has gradients for the ones it looked up; these average them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engram_cli.runtime.clipping import with_norm
from engram_cli.runtime.sparse_gradients import coalesced
from engram_cli.runtime.torch_ops_rows import sparse_tensor
from engram_cli.runtime.training import row_parameters


def average_row_gradients(model: nn.Module) -> None:
    """Replace the rows' gradients by their mean over the processes; call it before `step`.

    Every process of the default group calls it, also one without a gradient. A sparse gradient
    moves only the rows that some process looked up. Raises RuntimeAttachError without a memory.
    """
    for rows in row_parameters(model):
        if not rows.requires_grad:
            continue
        if _any_sparse(rows):
            rows.grad = _mean_sparse(rows)
        else:
            rows.grad = torch.zeros_like(rows) if rows.grad is None else rows.grad
            dist.all_reduce(rows.grad)
            rows.grad /= dist.get_world_size()


def _any_sparse(rows: nn.Parameter) -> bool:
    flag = torch.tensor(int(rows.grad is not None and rows.grad.is_sparse), device=rows.device)
    dist.all_reduce(flag)
    return bool(flag)


def _mean_sparse(rows: nn.Parameter) -> Tensor:
    """The mean of sparse gradients of different lengths: gathered, padded with zeros to one."""
    if rows.grad is None:
        indices = torch.zeros(0, dtype=torch.int64, device=rows.device)
        values = torch.zeros(0, rows.shape[1], dtype=rows.dtype, device=rows.device)
    else:
        gradient = coalesced(rows.grad)
        indices, values = gradient.indices()[0], gradient.values()
    longest = torch.tensor(len(indices), device=rows.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - len(indices)
    indices = torch.nn.functional.pad(indices, (0, missing))
    values = torch.nn.functional.pad(values, (0, 0, 0, missing))
    world = dist.get_world_size()
    all_indices = [torch.empty_like(indices) for _ in range(world)]
    all_values = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(all_indices, indices)
    dist.all_gather(all_values, values)
    total = sparse_tensor(torch.cat(all_indices), torch.cat(all_values) / world, rows.shape)
    return with_norm(coalesced(total))
