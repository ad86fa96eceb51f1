"""Attaches a bundle to a PyTorch model as its memory. Needs torch, NumPy and safetensors only.

`attach` hooks a live model, `memory` does the work of a forward call, `modules` are the published
arithmetic, `state` what decoding remembers, `reference` the look-up in plain torch; `saving`,
`training`, `evaluation` and `tracing` are for what comes after.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from engram_cli.errors import DependencyError

if find_spec("torch") is None:
    raise DependencyError(
        "attaching to a model needs PyTorch", "python -m pip install 'engram-tables[torch]'"
    )

from engram_cli.runtime.attach import activate, attach, deactivate, detach
from engram_cli.runtime.carried import memories

if TYPE_CHECKING:
    from engram_cli.runtime.evaluation import evaluate_losses as evaluate_losses
    from engram_cli.runtime.fitting import FitResult as FitResult
    from engram_cli.runtime.fitting import fit as fit
    from engram_cli.runtime.restoring import load as load
    from engram_cli.runtime.row_optimisers import RowwiseAdagrad as RowwiseAdagrad
    from engram_cli.runtime.row_optimisers import RowwiseAdam as RowwiseAdam
    from engram_cli.runtime.saving import save_engram as save_engram
    from engram_cli.runtime.sharding.trained.states import load_row_states as load_row_states
    from engram_cli.runtime.sharding.trained.states import save_row_states as save_row_states
    from engram_cli.runtime.sparse_gradients import clip_grad_norm as clip_grad_norm
    from engram_cli.runtime.tracing import Trace as Trace
    from engram_cli.runtime.tracing import trace as trace
    from engram_cli.runtime.training import average_row_gradients as average_row_gradients
    from engram_cli.runtime.training import parameter_groups as parameter_groups
    from engram_cli.runtime.training import parameters_summary as parameters_summary
    from engram_cli.runtime.training import row_parameters as row_parameters

# What comes after attaching is imported on first use.
_HOMES = {
    "FitResult": "fitting",
    "RowwiseAdagrad": "row_optimisers",
    "RowwiseAdam": "row_optimisers",
    "Trace": "tracing",
    "average_row_gradients": "training",
    "clip_grad_norm": "sparse_gradients",
    "evaluate_losses": "evaluation",
    "fit": "fitting",
    "load": "restoring",
    "load_row_states": "sharding.trained.states",
    "parameter_groups": "training",
    "parameters_summary": "training",
    "row_parameters": "training",
    "save_engram": "saving",
    "save_row_states": "sharding.trained.states",
    "trace": "tracing",
}

__all__ = [
    "FitResult",
    "RowwiseAdagrad",
    "RowwiseAdam",
    "Trace",
    "activate",
    "attach",
    "average_row_gradients",
    "clip_grad_norm",
    "deactivate",
    "detach",
    "evaluate_losses",
    "fit",
    "load",
    "load_row_states",
    "memories",
    "parameter_groups",
    "parameters_summary",
    "row_parameters",
    "save_engram",
    "save_row_states",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"engram_cli.runtime.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'engram_cli.runtime' has no attribute '{name}'")
