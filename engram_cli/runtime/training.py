"""What training needs of a model: its tables and the paper's parameter groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.attach import memories
from engram_cli.runtime.modules.base import Rows

ROWS_LR_FACTOR = 5.0  # the paper's: rows learn five times as fast, without weight decay


def row_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The tables of all memories that `model` carries. Raises RuntimeAttachError for none."""
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
    """Two groups for an optimiser of the Adam family: the backbone with the gates, and the rows.

    Rows have `rows_lr_factor` times the learning rate and no weight decay (the paper's recipe).
    Frozen parameters are in neither; a group without any is left out. Raises RuntimeAttachError.
    """
    rows = row_parameters(model)
    is_row = {id(parameter) for parameter in rows}
    rest = [p for p in model.parameters() if id(p) not in is_row and p.requires_grad]
    groups = [
        {"name": "backbone", "params": rest, "lr": lr, "weight_decay": weight_decay},
        {
            "name": "rows",
            "params": [parameter for parameter in rows if parameter.requires_grad],
            "lr": rows_lr_factor * lr,
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]
