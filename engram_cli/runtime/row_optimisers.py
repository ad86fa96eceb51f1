"""Optimisers for very large tables: only rows that have a gradient are read and written.

In: sparse gradients, in which a row may occur many times. A step adds up each row's and updates the
row and its state at once, without waiting for the device, so that it can be part of a CUDA graph;
in a plain loop it becomes one by itself (`step_graphs`).
State for a row of `dim` values: `RowwiseAdagrad` 4 bytes, `RowwiseAdam` 8 x dim.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import ops
from engram_cli.runtime.graph_capture import is_capturing_graph
from engram_cli.runtime.row_gradients import Rate, adagrad_change
from engram_cli.runtime.step_graphs import StepGraphs

DISTRIBUTED = "engram_distributed"  # an attribute of such a weight


class _RowOptimiser(torch.optim.Optimizer):
    """The loop over parameters that the optimisers of rows share.

    The state of rows that are distributed over processes is in no state dict, since a process has
    only a part of it: `save_row_states` and `load_row_states` keep it.
    """

    _missing: frozenset[int] = frozenset()  # ids of weights whose state a state dict left out
    _graphs: StepGraphs | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure` recomputes the loss, as in torch's optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                gradient = weight.grad
                if gradient is not None:
                    self._check_state(weight)
                    self._update(weight, gradient, self.state[weight], group)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do what torch's optimisers do, whose label for profilers takes 25 us of a GPU's host."""
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what torch does, without the state of distributed rows, which it names."""
        found = super().state_dict()
        apart = [n for n, w in self._numbered(found) if is_distributed(w) and n in found["state"]]
        if apart:
            kept = {n: state for n, state in found["state"].items() if n not in apart}
            found |= {"state": kept, "apart": apart}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as torch does, but state stays float32 where parameters are narrower."""
        super().load_state_dict(state_dict)
        numbered = self._numbered(state_dict)
        for number, weight in numbered:
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[weight][name] = value.to(weight.device, copy=True)
        apart = state_dict.get("apart", ())
        self._missing = frozenset(id(weight) for number, weight in numbered if number in apart)

    def _numbered(self, state_dict: dict[str, Any]) -> list[tuple[int, Tensor]]:
        """Return all weights with their numbers in a state dict."""
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        return list(zip(numbers, weights, strict=True))

    def _check_state(self, weight: Tensor) -> None:
        """Raise RuntimeAttachError for a resumed weight whose state was not loaded."""
        if id(weight) in self._missing and not self.state[weight]:
            raise RuntimeAttachError(
                "the state of rows over processes is not in the optimiser's state dict",
                "load_row_states(optimiser, model, folder) what save_row_states wrote",
            )

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        raise NotImplementedError

    def _run(
        self,
        step: Callable[[Rate], None],
        written: tuple[Tensor, ...],
        gradient: tuple[Tensor, Tensor],
        lr: float,
        constants: Hashable,
    ) -> None:
        """Run a step for sparse rows with the learning rate, on a GPU as a CUDA graph.

        `written`: the weight and its state; `gradient`: values and row numbers.
        """
        weight = written[0]
        if not weight.is_cuda or is_capturing_graph() or not ops.has_kernels(weight.device):
            step(lr)
            return
        self._graphs = self._graphs or StepGraphs()
        rate = self._graphs.rate(weight, lr)
        self._graphs.run(lambda: step(rate), (*written, *gradient, rate), constants)
        torch.autograd.graph.increment_version(written)


def is_distributed(weight: Tensor) -> bool:
    """Return whether a weight is this process's part of a table that several processes have."""
    return getattr(weight, DISTRIBUTED, False)


class RowwiseAdagrad(_RowOptimiser):
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

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if "sum" not in state:
            shape, device = weight.shape[:1], weight.device
            state["sum"] = torch.full(shape, group["initial"], dtype=torch.float32, device=device)
        sums, lr, eps = state["sum"], float(group["lr"]), group["eps"]
        if gradient.is_sparse:
            rows = gradient._values(), gradient._indices()[0]
            self._run(
                lambda rate: ops.adagrad_step(weight, sums, *rows, rate, eps),
                (weight, sums),
                rows,
                lr,
                eps,
            )
            return
        values = gradient.float()
        sums += values.square().mean(dim=1)
        weight.copy_(weight.float() - adagrad_change(values, sums, lr, eps))


class RowwiseAdam(_RowOptimiser):
    """Adam for the rows that have a gradient, with float32 mean and square for each value of a row.

    The arithmetic of torch.optim.SparseAdam: a row that is not looked up is not decayed, and all
    rows count all steps. Takes sparse gradients only; for dense ones there is torch.optim.Adam.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lr {lr}, eps {eps}, betas {betas}: none may be negative, betas are below 1"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if not gradient.is_sparse:
            raise ValueError(
                "RowwiseAdam takes sparse gradients: attach with sparse_gradients=True, or give "
                "these rows to torch.optim.Adam"
            )
        if "step" not in state:
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            # On the device, so that a CUDA graph counts its replays.
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        moments = state["exp_avg"], state["exp_avg_sq"], state["step"]
        rows = gradient._values(), gradient._indices()[0]
        betas, eps = group["betas"], group["eps"]

        def step(rate: Rate) -> None:
            moments[2].add_(1)
            ops.adam_step(weight, moments, *rows, rate, betas, eps)

        self._run(step, (weight, *moments), rows, float(group["lr"]), (*betas, eps))
