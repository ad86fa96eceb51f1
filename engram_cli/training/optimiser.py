"""One optimiser for a model with a memory: row-wise Adam or Adagrad for rows, AdamW for the rest.

The Trainer takes one optimiser. Sparse gradients need one of `runtime.row_optimisers`, weights any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from engram_cli.runtime.row_optimisers import RowwiseAdagrad, RowwiseAdam
from engram_cli.runtime.training import row_parameters
from engram_cli.training import defaults

ROW_OPTIMISERS: dict[str, type[RowwiseAdam | RowwiseAdagrad]] = {
    "adam": RowwiseAdam,
    "adagrad": RowwiseAdagrad,
}


class ChainedOptimiser(torch.optim.Optimizer):
    """Several optimisers with parameters of their own, as one: the groups are theirs."""

    def __init__(self, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimisers = list(optimisers)
        super().__init__([group for each in optimisers for group in each.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with each; `closure` computes the loss, once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for each in self.optimisers:
            each.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        for each in self.optimisers:
            each.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each, in order."""
        return {"optimisers": [each.state_dict() for each in self.optimisers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of each; the groups become the loaded ones."""
        for each, state in zip(self.optimisers, state_dict["optimisers"], strict=True):
            each.load_state_dict(state)
        self.param_groups = [group for each in self.optimisers for group in each.param_groups]


def row_optimiser(optimiser: Any) -> RowwiseAdam | RowwiseAdagrad | None:
    """Return the row-wise optimiser in one of `make_optimiser`, also in accelerate's wrapper."""
    inner = getattr(optimiser, "optimizer", optimiser)
    each = inner.optimisers if isinstance(inner, ChainedOptimiser) else [inner]
    return next((own for own in each if isinstance(own, RowwiseAdam | RowwiseAdagrad)), None)


def make_optimiser(
    model: nn.Module,
    *,
    rows_lr: float = defaults.ROWS_LR,
    lr: float = defaults.DENSE_LR,
    lora_lr: float = defaults.LORA_LR,
    full_lr: float = defaults.FULL_LR,
    weight_decay: float = defaults.WEIGHT_DECAY,
    rows: str = "adam",
) -> torch.optim.Optimizer:
    """Return an optimiser of all that learns in a model; a scheduler can change its rates.

    `lr`: of the memory's other weights. `weight_decay`: of the backbone's matrices alone. `rows`:
    "adam" (8 bytes of state a value) or "adagrad" (4 bytes a row). Rows with dense gradients get
    AdamW without decay. Raises RuntimeAttachError for a model without a memory.
    """
    from engram_cli.runtime.carried import memories

    found = memories(model).values()
    tables = row_parameters(model) if found else []
    of_rows = {id(parameter) for parameter in tables}
    gates = {id(p) for memory in found for p in memory.parameters()} - of_rows
    groups: dict[str, list[nn.Parameter]] = {"gates": [], "lora": [], "matrices": [], "rest": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in of_rows:
            continue
        if "lora_" in name:
            groups["lora"].append(parameter)
        elif id(parameter) in gates:
            groups["gates"].append(parameter)
        else:
            groups["matrices" if parameter.ndim > 1 else "rest"].append(parameter)
    rates = {"gates": lr, "lora": lora_lr, "matrices": full_lr, "rest": full_lr}
    dense = [
        {
            "name": name,
            "params": own,
            "lr": rates[name],
            "weight_decay": weight_decay if name == "matrices" else 0.0,
        }
        for name, own in groups.items()
        if own
    ]
    learning = [parameter for parameter in tables if parameter.requires_grad]
    if learning and not _are_sparse(model):
        dense.append({"name": "rows", "params": learning, "lr": rows_lr, "weight_decay": 0.0})
        learning = []
    optimisers: list[torch.optim.Optimizer] = []
    if dense:
        optimisers.append(torch.optim.AdamW(dense, betas=defaults.BETAS))
    if learning:
        group = [{"name": "rows", "params": learning, "lr": rows_lr}]
        options: dict[str, Any] = {"betas": defaults.BETAS} if rows == "adam" else {}
        optimisers.append(ROW_OPTIMISERS[rows](group, **options))
    return optimisers[0] if len(optimisers) == 1 else ChainedOptimiser(optimisers)


def _are_sparse(model: nn.Module) -> bool:
    from engram_cli.runtime.modules.base import Rows

    return any(module.sparse for module in model.modules() if isinstance(module, Rows))
