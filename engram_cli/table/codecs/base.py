"""What a codec is: float32 rows in, rows as they are stored out, and back."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Codec(Protocol):
    """A logical dtype. Encoding and decoding hold no state and may run in many threads."""

    @property
    def name(self) -> str:
        """The logical dtype, as attributes and flags call it."""

    @property
    def physical(self) -> np.dtype[Any]:
        """The dtype of a stored item, little-endian."""

    def width(self, dim: int) -> int:
        """How many stored items a row of `dim` values takes."""

    def encode(self, values: NDArray[np.float32], out: NDArray[Any]) -> None:
        """Store `values` float32[n, dim] in `out` [n, width]; both contiguous."""

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """The values float32[n, dim] of stored rows [n, width]."""
