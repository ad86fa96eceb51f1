"""Codecs of small integers and floats under scales: what they share, as one dataclass.

A value is stored as the item nearest to value / scale and read as item times scale in float32. A
block's scale follows from its largest finite value; NaN and infinite values are stored as NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.codecs import kernels
from engram_cli.rows.codecs.base import Scaling

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledCodec:
    """Items of a byte or of half a byte (`packed`), with scales.

    `choose`: stored scales from the largest finite sizes of the blocks; not asked where one scale
    serves a layer. `widen`: stored scales as float32. `quantise(values, scales, dim, block, items)`
    writes items uint8; `meanings` float32[256] is the value of each item at scale 1.
    """

    name: str
    physical: np.dtype[Any]
    scaling: Scaling
    choose: Callable[[Floats], NDArray[Any]]
    widen: Callable[[NDArray[Any]], Floats]
    quantise: Callable[[Floats, Floats, int, int, Bytes], None]
    meanings: Floats
    packed: bool = False

    def width(self, dim: int) -> int:
        """A row of `dim` values takes `dim` items, two of them a byte where they are packed."""
        return -(-dim // 2) if self.packed else dim

    def encode(self, values: Floats, stored: NDArray[Any], scales: NDArray[Any] | None) -> None:
        """Store `values` float32[n, dim] as `stored` [n, width] and, but for a layer's, `scales`.

        All contiguous.
        """
        assert scales is not None
        dim = values.shape[1]
        block = self._block(dim)
        if self.scaling.per != "layer":
            tops = np.empty(scales.shape, dtype=np.float32)
            kernels.block_tops(values.reshape(-1), dim, block, tops.reshape(-1))
            scales[:] = self.choose(tops)
        out = stored.view(np.uint8).reshape(-1)
        items = np.empty(values.size, dtype=np.uint8) if self.packed else out
        self.quantise(values.reshape(-1), self._factors(scales, len(values)), dim, block, items)
        if self.packed:
            kernels.to_nibbles(items, dim, out)

    def decode(self, stored: NDArray[Any], scales: NDArray[Any] | None, values: Floats) -> None:
        """Write the values of `stored` [n, width] to `values` float32[n, dim]; all contiguous."""
        assert scales is not None
        dim = values.shape[1]
        items = stored.view(np.uint8).reshape(-1)
        if self.packed:
            packed, items = items, np.empty(values.size, dtype=np.uint8)
            kernels.from_nibbles(packed, dim, items)
        factors = self._factors(scales, len(values))
        kernels.from_bytes(items, self.meanings, factors, dim, self._block(dim), values.reshape(-1))

    def _block(self, dim: int) -> int:
        return self.scaling.block or dim

    def _factors(self, scales: NDArray[Any], rows: int) -> Floats:
        """The scale of every block, float32, one after another."""
        factors = self.widen(scales).reshape(-1)
        return np.repeat(factors, rows) if self.scaling.per == "layer" else factors
