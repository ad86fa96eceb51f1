"""The rows of a layer in tiers: in HBM, in pinned host memory, on disk, or split by their hits.

Rows are copied between tiers as records: a stored row followed by its scales (`records`). A tier
that holds every row of a layer is a `records.RecordSource`: `host`, `disk`. `placement` decides
where rows are stored.

This file has what the rest of the runtime needs, so that it imports the tiers only where a layer
uses them, and what all tiers need to survive a fork.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

import torch
from torch import Tensor, nn


class PlacedRows(nn.Module):
    """Rows of a layer that stay where they were placed when the model is moved.

    They are frozen, and neither parameters nor buffers. Vectors are written to `device`. `origin`:
    the bundle and the layer of the rows, where they are of one.
    """

    sparse = False
    device: torch.device
    origin: tuple[Any, int] | None = None

    def vectors(self, rows: Tensor) -> Tensor:
        """Return the vectors [..., C x dim] of row numbers int64[..., C]."""
        raise NotImplementedError


def with_index(device: torch.device) -> torch.device:
    """Return a CUDA device with its index, as the devices of tensors have one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


_alive: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_in_children(thing: Any) -> None:
    """Call `thing.after_fork()` in each child process that is forked while `thing` exists.

    A child has none of its parent's threads, and a lock that one of them held would stay locked:
    `after_fork` makes both again.
    """
    _alive.add(thing)


def _renew() -> None:
    for thing in list(_alive):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
