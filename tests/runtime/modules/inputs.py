"""Input for a module alone, and the type of the fixture that builds one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.modules.base import MemoryModule

Build = Callable[..., MemoryModule]


def some_input(spec: BundleSpec) -> tuple[Tensor, Tensor]:
    """Hidden states [2, 14, carried streams, d] and row numbers int64[2, 14, C]."""
    generator = torch.Generator().manual_seed(5)
    shape = (2, 14, spec.module.carried_streams, spec.hidden_size)
    rows = torch.randint(
        0, spec.rows(spec.layers[0]), (2, 14, spec.layout.columns), generator=generator
    )
    return torch.randn(shape, generator=generator), rows
