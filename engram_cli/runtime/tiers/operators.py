"""Reading tiered rows as one torch operator, for torch.compile.

The rows' store is named by its number: as arguments, tensors in host memory would keep inductor
from using CUDA graphs.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from engram_cli.runtime.tiers.placed import PlacedRows

_STORES: weakref.WeakValueDictionary[int, PlacedRows] = weakref.WeakValueDictionary()


def register(number: int, store: PlacedRows) -> None:
    """Let the operator know a store for as long as it lives."""
    _STORES[number] = store


@torch.library.custom_op("engram::tiered", mutates_args=())
def tiered(rows: Tensor, store: int, width: int, dtype: torch.dtype) -> Tensor:
    """`PlacedRows.vectors` of rows int64[..., C]: [..., C x width] in `dtype`."""
    return _STORES[store].vectors(rows)


@tiered.register_fake
def _(rows, store, width, dtype):  # type: ignore[no-untyped-def]
    return rows.new_empty((*rows.shape[:-1], rows.shape[-1] * width), dtype=dtype)
