"""What a codec is: float32 rows in, rows as they are stored and their scales out, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The scales of a layer's rows: one for the layer, for each row, or for a block of a row.

    `dtype`: that of a stored scale, little-endian. `block`: values that share a scale, the last
    block of a row may be shorter.
    """

    per: Literal["layer", "row", "block"]
    dtype: np.dtype[Any]
    block: int = 0

    def width(self, dim: int) -> int:
        """How many scales a row of `dim` values has; one scale for the layer counts as one."""
        return -(-dim // self.block) if self.per == "block" else 1


class Codec(Protocol):
    """A logical dtype. Encoding and decoding hold no state and may run in many threads.

    Scales are [n, scaling.width(dim)], or [1] where one serves the layer, or None without scaling.
    """

    @property
    def name(self) -> str:
        """The logical dtype, as attributes and flags call it."""

    @property
    def physical(self) -> np.dtype[Any]:
        """The dtype of a stored item, little-endian."""

    @property
    def scaling(self) -> Scaling | None:
        """How the scales lie; None where a stored item is a value."""

    def width(self, dim: int) -> int:
        """How many stored items a row of `dim` values takes."""

    def encode(
        self, values: NDArray[np.float32], stored: NDArray[Any], scales: NDArray[Any] | None
    ) -> None:
        """Store `values` float32[n, dim] in `stored` [n, width]; all contiguous.

        The scales are written too, except the one of a layer, which is read.
        """

    def decode(
        self, stored: NDArray[Any], scales: NDArray[Any] | None, values: NDArray[np.float32]
    ) -> None:
        """Write the values of `stored` [n, width] to `values` float32[n, dim]; all contiguous."""


def row_bytes(codec: Codec, dim: int) -> int:
    """Bytes that a row of `dim` values takes, its scales included, the one of a layer left out."""
    scaling = codec.scaling
    scales = 0
    if scaling is not None and scaling.per != "layer":
        scales = scaling.width(dim) * scaling.dtype.itemsize
    return codec.width(dim) * codec.physical.itemsize + scales
