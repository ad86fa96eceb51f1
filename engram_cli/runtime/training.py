"""What training needs: the paper's parameter groups, and an optimiser for very large tables.

Adam keeps two numbers for each number of the table; `RowwiseAdagrad` one for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.attach import memories
from engram_cli.runtime.modules.base import TABLE

ROWS_LR_FACTOR = 5.0  # the paper's: rows learn five times as fast, without weight decay


def row_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The tables of all memories that `model` carries. Raises RuntimeAttachError for none."""
    found = memories(model)
    if not found:
        raise RuntimeAttachError("the model carries no memory", "attach one first")
    return [
        parameter
        for memory in found.values()
        for name, parameter in memory.named_parameters()
        if name.endswith(TABLE)
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


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one float32 of state a row: the sum of the row gradients' mean squares.

    For row r with gradient g: sum[r] += mean(g^2), w[r] -= lr * g / (sqrt(sum[r]) + eps). Takes
    dense and sparse gradients; either way rows without a gradient stay as they are.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, *, eps: float = 1e-8, initial: float = 0.0
    ) -> None:
        if lr < 0 or eps < 0 or initial < 0:
            raise ValueError(f"lr {lr}, eps {eps}, initial {initial}: none may be negative")
        super().__init__(params, {"lr": lr, "eps": eps, "initial": initial})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure` recomputes the loss, as in torch's optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "sum" not in state:
            shape, device = weight.shape[:1], weight.device
            state["sum"] = torch.full(shape, group["initial"], dtype=torch.float32, device=device)
        sums, gradient = state["sum"], weight.grad
        assert gradient is not None
        if not gradient.is_sparse:
            values = gradient.float()
            sums += values.square().mean(dim=1)
            weight -= self._change(values, sums, group).to(weight.dtype)
            return
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values().float()
        touched = sums[rows] + values.square().mean(dim=1)
        sums[rows] = touched
        weight[rows] -= self._change(values, touched, group).to(weight.dtype)

    @staticmethod
    def _change(values: Tensor, sums: Tensor, group: dict[str, Any]) -> Tensor:
        """[n, dim]: what to take from rows whose gradients are `values`; zero where they are."""
        divisor = sums.sqrt() + group["eps"]
        quotient: Tensor = values / divisor.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        return quotient * float(group["lr"])
