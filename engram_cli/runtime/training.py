"""Training: parameter groups and a summary of them, row gradients of several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.carried import memories
from engram_cli.runtime.modules.base import Rows
from engram_cli.runtime.row_gradients import sparse_tensor
from engram_cli.runtime.sharding.trained.rows import ShardedRows
from engram_cli.runtime.sparse_gradients import coalesced, with_norm

ROWS_LR_FACTOR = 5.0  # the paper's: rows learn five times as fast, without weight decay


def row_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the tables of all memories of `model`. Raises RuntimeAttachError for none.

    Of rows with `placement="shard"`, the part that this process owns.
    """
    return [rows.weight for rows in row_modules(model).values()]


def row_modules(model: nn.Module) -> dict[str, Rows]:
    """Return the modules of `row_parameters` by their names in each memory, after its own.

    Raises RuntimeAttachError for a model without a memory.
    """
    found = memories(model)
    if not found:
        raise RuntimeAttachError("the model carries no memory", "attach one first")
    return {
        f"{memory.name}.{name}": module
        for memory in found.values()
        for name, module in memory.named_modules()
        if isinstance(module, Rows)
    }


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """How many numbers a part of the model has, how many of them learn, and the bytes of all."""

    name: str
    total: int
    trainable: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ParametersSummary:
    """The parts of a model: `rows`, `gates` (the memory's other weights), `adapters`, `backbone`.

    A part that the model does not have is left out. As text, a table.
    """

    parts: tuple[ParameterCount, ...]

    @property
    def trainable(self) -> int:
        """The numbers that learn."""
        return sum(part.trainable for part in self.parts)

    def __str__(self) -> str:
        lines = [("", "parameters", "trainable", "bytes")]
        lines += [
            (each.name, f"{each.total:,}", f"{each.trainable:,}", f"{each.bytes:,}")
            for each in self.parts
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            f"{name:<{widths[0]}}  " + "  ".join(map(str.rjust, figures, widths[1:]))
            for name, *figures in lines
        )


def parameters_summary(model: nn.Module) -> ParametersSummary:
    """Return what a model's parameters are, by part, and which of them learn.

    Quantised rows and rows in tiers are counted as rows; they do not learn. Rows over several
    processes are counted with all of them.
    """
    found = memories(model).values()
    own = {id(p) for memory in found for p in memory.parameters()}
    tables = row_modules(model).values() if found else ()
    heights = {id(table.weight): table.num_embeddings for table in tables}
    counts = {name: [0, 0, 0] for name in ("rows", "gates", "adapters", "backbone")}
    for name, parameter in model.named_parameters():
        part = "backbone"
        size, held = parameter.numel(), parameter.nbytes
        if id(parameter) in heights:
            part = "rows"
            height, own_rows = heights[id(parameter)], max(len(parameter), 1)
            size, held = (value // own_rows * height for value in (size, held))
        elif "lora_" in name or ".adapter" in name:
            part = "adapters"
        elif id(parameter) in own:
            part = "gates"
        for at, value in enumerate((size, size * parameter.requires_grad, held)):
            counts[part][at] += value
    for spec in (memory.spec for memory in found if not _has_parameters(memory)):
        counts["rows"][0] += sum(spec.rows(layer) for layer in spec.layers) * spec.dim
        counts["rows"][2] += spec.table_bytes
    return ParametersSummary(
        tuple(
            ParameterCount(name=name, total=total, trainable=trainable, bytes=size)
            for name, (total, trainable, size) in counts.items()
            if total
        )
    )


def _has_parameters(memory: nn.Module) -> bool:
    return any(isinstance(module, Rows) for module in memory.modules())


def average_row_gradients(model: nn.Module) -> None:
    """Replace the rows' gradients by their mean over the processes; call it before `step`.

    Every process of the default group calls it, also one without a gradient. A sparse gradient
    moves only the rows that some process looked up. Those of `placement="shard"` are the mean
    already. Raises RuntimeAttachError without a memory.
    """
    for module in row_modules(model).values():
        rows = module.weight
        if isinstance(module, ShardedRows) or not rows.requires_grad:
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
    """Return the mean of sparse gradients of different lengths, gathered padded."""
    if rows.grad is None:
        indices = torch.zeros(0, dtype=torch.int64, device=rows.device)
        values = torch.zeros(0, rows.shape[1], dtype=rows.dtype, device=rows.device)
    else:
        gradient = coalesced(rows.grad)
        indices, values = gradient.indices()[0], gradient.values()
    longest = torch.tensor(len(indices), device=rows.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - len(indices)
    # Padding has no row: a zero gradient would move a row that Adam has a mean of.
    indices = torch.nn.functional.pad(indices, (0, missing), value=-1)
    values = torch.nn.functional.pad(values, (0, 0, 0, missing))
    world = dist.get_world_size()
    all_indices = [torch.empty_like(indices) for _ in range(world)]
    all_values = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(all_indices, indices)
    dist.all_gather(all_values, values)
    every, given = torch.cat(all_indices), torch.cat(all_values) / world
    real = every >= 0
    total = sparse_tensor(every[real], given[real], rows.shape)
    return with_norm(coalesced(total))
