"""Training: a model's tables, the paper's parameter groups, row gradients of several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.carried import memories
from engram_cli.runtime.modules.base import Rows
from engram_cli.runtime.row_gradients import sparse_tensor
from engram_cli.runtime.sparse_gradients import coalesced, with_norm

ROWS_LR_FACTOR = 5.0  # the paper's: rows learn five times as fast, without weight decay


def row_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the tables of all memories of `model`. Raises RuntimeAttachError for none."""
    found = memories(model)
    if not found:
        raise RuntimeAttachError("the model carries no memory", "attach one first")
    return [
        module.weight
        for memory in found.values()
        for module in memory.modules()
        if isinstance(module, Rows)
    ]


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    rows_lr_factor: float = ROWS_LR_FACTOR,
) -> list[dict[str, Any]]:
    """Return two groups for an Adam-like optimiser: the backbone with the gates, and the rows.

    Rows have `rows_lr_factor` times the learning rate and no weight decay (the paper's recipe).
    Frozen parameters are in neither; a group without any is left out. Raises RuntimeAttachError.
    """
    rows = row_parameters(model)
    is_row = {id(parameter) for parameter in rows}
    rest = [p for p in model.parameters() if id(p) not in is_row and p.requires_grad]
    trained = [parameter for parameter in rows if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"name": "backbone", "params": rest, "lr": lr, "weight_decay": weight_decay},
        {"name": "rows", "params": trained, "lr": rows_lr_factor * lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def average_row_gradients(model: nn.Module) -> None:
    """Replace the rows' gradients by their mean over the processes; call it before `step`.

    Every process of the default group calls it, also one without a gradient. A sparse gradient
    moves only the rows that some process looked up. Raises RuntimeAttachError without a memory.
    """
    for rows in row_parameters(model):
        if not rows.requires_grad:
            continue
        is_sparse = rows.grad is not None and rows.grad.is_sparse
        any_sparse = torch.tensor(int(is_sparse), device=rows.device)
        dist.all_reduce(any_sparse)
        if any_sparse:
            rows.grad = _mean_sparse(rows)
        else:
            rows.grad = torch.zeros_like(rows) if rows.grad is None else rows.grad
            dist.all_reduce(rows.grad)
            rows.grad /= dist.get_world_size()


def _mean_sparse(rows: nn.Parameter) -> Tensor:
    """Return the mean of sparse gradients of different lengths, gathered and padded with zeros."""
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
