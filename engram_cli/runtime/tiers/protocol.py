"""What the parts of a tiered layer expect of each other, and how they survive a fork.

`PlacedRows` is all that the rest of the runtime needs, so that it loads the tiers only where a
layer uses them. `RowSource` is a tier with every row of a layer. `Forkable` objects have threads or
locks: a forked child has none of its parent's threads, so it must make them again, and a lock that
one of them held would stay locked.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

import torch
from torch import Tensor, nn


class PlacedRows(nn.Module):
    """Rows of a layer that stay where they were placed when the model is moved.

    They are frozen, and neither parameters nor buffers. Vectors are written to `device`.
    """

    sparse = False
    device: torch.device

    def vectors(self, rows: Tensor) -> Tensor:
        """Return the vectors [..., C x dim] of row numbers int64[..., C]."""
        raise NotImplementedError


class RowSource(Protocol):
    """Holds every row of a layer and copies any of them out as records. Thread safe."""

    @property
    def rows(self) -> int:
        """How many rows the layer's table has."""
        ...

    @property
    def record_bytes(self) -> int:
        """The bytes of a record."""
        ...

    def gather(self, rows: Tensor, out: Tensor) -> None:
        """Write the records of `rows` int64[n] to `out` uint8[n, record_bytes], both on the CPU.

        Rows are distinct, in any order. Returns when all are written; padding is unspecified.
        Raises InputError for rows or an `out` that do not fit, ArtifactError for a failed read.
        """
        ...

    def counters(self) -> dict[str, int | float]:
        """Totals since the start: `rows` and `bytes` copied, cache `hits`, `seconds` spent."""
        ...

    def close(self) -> None:
        """Free memory, close files, end threads; `gather` may not be called afterwards."""
        ...


class Forkable(Protocol):
    """An object with threads or locks."""

    def after_fork(self) -> None:
        """Make threads and locks again, in a child process."""
        ...


_alive: weakref.WeakSet[Forkable] = weakref.WeakSet()


def renew_in_children(thing: Forkable) -> None:
    """Call `thing.after_fork` in each child process that is forked while `thing` exists."""
    _alive.add(thing)


def _renew() -> None:
    for thing in list(_alive):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
