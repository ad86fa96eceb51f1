"""What an init is: the rows of a layer, any range of them at a time, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Filler = Callable[[int, NDArray[np.float32]], None]
"""Writes the rows from the first one given into float32[n, dim], contiguous; runs in threads."""


class Init(Protocol):
    """Initial rows that depend on the layer and the row alone, so that any fill order is right."""

    @property
    def name(self) -> str:
        """The init's name in the registry."""

    @property
    def parameters(self) -> dict[str, Any]:
        """A JSON value of all that decides the rows."""

    def filler(self, layer: int, dim: int) -> Filler | None:
        """What writes the rows of a layer; None when all of them are zero."""

    def bound(self, layer: int, dim: int) -> float | None:
        """A size that no value of a layer exceeds, for dtypes with one scale a layer.

        None when only the rows can tell.
        """
