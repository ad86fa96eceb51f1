"""Stage 7 of 7: a bundle in, a model with a memory out. Needs torch, NumPy and safetensors only.

`attach` hooks a live model, `memory` does the work of a forward call, `modules` are the published
arithmetic, `state` what decoding remembers, `reference` the look-up in plain torch; `saving`,
`training` and `tracing` are for what comes after.
"""

from __future__ import annotations

from importlib.util import find_spec

from engram_cli.errors import DependencyError

if find_spec("torch") is None:
    raise DependencyError(
        "attaching to a model needs PyTorch", "python -m pip install 'engram-tables[torch]'"
    )

from engram_cli.runtime.attach import activate, attach, deactivate, detach, memories
from engram_cli.runtime.distributed import average_row_gradients
from engram_cli.runtime.saving import load, save_engram
from engram_cli.runtime.tracing import Trace, trace
from engram_cli.runtime.training import RowwiseAdagrad, parameter_groups, row_parameters

__all__ = [
    "RowwiseAdagrad",
    "Trace",
    "activate",
    "attach",
    "average_row_gradients",
    "deactivate",
    "detach",
    "load",
    "memories",
    "parameter_groups",
    "row_parameters",
    "save_engram",
    "trace",
]
