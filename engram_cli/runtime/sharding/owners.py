"""Which rank owns a row: of a layer's table, row r belongs to rank r % world, at index r // world.

Row numbers come from a hash, so that neighbouring rows are as good as random and every rank gets
the same load, whichever heads a call reads. A row number contains its head's offset and the padding
between heads: nothing but the number of rows needs to be known. The functions take and return ints,
NumPy arrays and tensors alike.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import InputError

Rows = TypeVar("Rows", int, NDArray[np.int64], Tensor)


def owner_of(rows: Rows, world: int) -> Rows:
    """Return the rank that owns each row."""
    return rows % world


def index_at_owner(rows: Rows, world: int) -> Rows:
    """Return the index of each row among the rows of its owner."""
    return rows // world


def count_at(rows: int, rank: int, world: int) -> int:
    """Return how many of `rows` rows a rank owns. Raises InputError for a rank outside the world.

    Ranks differ by one row at most, and earlier ranks never own fewer.
    """
    if not 0 <= rank < world:
        raise InputError(f"rank {rank} of {world} processes", f"give 0..{world - 1}")
    return (rows - rank + world - 1) // world


def by_owner(rows: Tensor, world: int) -> tuple[Tensor, Tensor]:
    """Sort rows int64[n] by their owner; rows of one owner keep their order.

    Returns the order int64[n], so that rows[order] are those of rank 0, of rank 1 and so on, and
    the count of each rank int64[world]. Nothing waits for the device.
    """
    owners = owner_of(rows, world)
    # A radix sort takes a pass for each byte of its keys.
    keys = owners.to(torch.uint8 if world <= 256 else torch.int32)
    ranks = torch.arange(world, device=rows.device)
    return torch.argsort(keys, stable=True), (owners[:, None] == ranks).sum(0)
