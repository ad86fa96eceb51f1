"""Distributed tables by their numbers, by which an operator of torch finds them."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor


class DistributedTables(Protocol):
    """The rows of all layers of a memory: a `rows.ShardedTables`."""

    number: int
    width: int
    dtype: torch.dtype

    def look_up(self, hashed: Any, ids: Tensor, back: Any) -> Tensor:
        """Return the vectors [L, *ids.shape, C x dim] of raw token ids, by kernels."""

    def read(self, place: int, rows: Tensor) -> Tensor:
        """Return the vectors [..., C x dim] of rows int64[..., C] of the layer at `place`."""


_TABLES: weakref.WeakValueDictionary[int, DistributedTables] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def register(tables: DistributedTables) -> int:
    """Return the number of these tables, which `find` takes for as long as they exist."""
    number = next(_numbers)
    _TABLES[number] = tables
    return number


def find(number: int) -> DistributedTables:
    """Return the tables with a number."""
    return _TABLES[number]
