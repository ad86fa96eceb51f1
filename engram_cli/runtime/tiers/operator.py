"""The look-up of placed rows as one operator, `engram::tiered`, for torch.compile.

It finds its layer by a number, because host tensors as arguments would keep inductor from using
CUDA graphs.
"""

from __future__ import annotations

import itertools
import weakref

import torch
from torch import Tensor

from engram_cli.runtime.tiers import PlacedRows

_STORES: weakref.WeakValueDictionary[int, PlacedRows] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def register(store: PlacedRows) -> int:
    """Return the number by which the operator finds these rows."""
    number = next(_numbers)
    _STORES[number] = store
    return number


@torch.library.custom_op("engram::tiered", mutates_args=())
def tiered(rows: Tensor, store: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return `PlacedRows.vectors` of rows int64[..., C]: [..., C x width] in `dtype`."""
    return _STORES[store].vectors(rows)


@tiered.register_fake
def _(rows, store, width, dtype):  # type: ignore[no-untyped-def]
    return rows.new_empty((*rows.shape[:-1], rows.shape[-1] * width), dtype=dtype)


class OperatorRows(PlacedRows):
    """Placed rows whose look-up is the operator in a model that is compiled.

    `number`: what `register` gave; `width` and `dtype`: of the vector of a row.
    """

    number: int
    width: int
    dtype: torch.dtype

    def forward(self, rows: Tensor) -> Tensor:
        """Return the vectors [B, T, C x width] of rows int64[B, T, C] in `dtype`."""
        rows = rows.to(self.device)
        if torch.compiler.is_compiling():
            found: Tensor = tiered(rows, self.number, self.width, self.dtype)
            return found
        return self.vectors(rows)
