"""normal: independent normal values of mean 0, drawn by counter from the seed, layer and row.

No state travels from row to row: any order, chunk size and number of threads gives the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.hashing.schemes.qwen_ple import splitmix64
from engram_cli.table.inits import kernels
from engram_cli.table.inits.base import Filler

# The initializer_range of almost every decoder's config: rows start at the scale of the
# checkpoint's own embeddings.
DEFAULT_STD = 0.02
LARGEST = 6.67
GENERATOR = "splitmix64-box-muller-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """Normal rows of standard deviation `std`, rounded to float32, from a seed of 64 bits."""

    std: float = DEFAULT_STD
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and 0 < self.std < 1e6):
            raise InputError(f"std {self.std}", "give a positive number such as 0.02")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed {self.seed}", "give a seed from 0 to 2^64 - 1")

    @property
    def name(self) -> str:
        """The init's name in the registry."""
        return "normal"

    @property
    def parameters(self) -> dict[str, Any]:
        """Standard deviation, seed (a string, it may exceed 53 bits) and generator."""
        return {"std": self.std, "seed": str(self.seed), "generator": GENERATOR}

    def filler(self, layer: int, dim: int) -> Filler:
        """What writes the rows of `layer`: counter row * pairs + j gives columns 2j and 2j + 1."""
        key = np.uint64(stream_key(self.seed, layer))
        std = np.float32(self.std)
        pairs = -(-dim // 2)

        def fill(first_row: int, out: NDArray[np.float32]) -> None:
            first = np.uint64(first_row * pairs)
            if dim % 2 == 0:
                kernels.normal(key, first, std, out.reshape(-1))
                return
            wide = np.empty((len(out), 2 * pairs), dtype=np.float32)
            kernels.normal(key, first, std, wide.reshape(-1))
            out[:] = wide[:, :dim]

        return fill

    def bound(self, layer: int, dim: int) -> float:
        """The radius of the rarest word, sqrt(-2 ln 2**-32) = 6.6604 deviations, rounded up."""
        return self.std * LARGEST


def stream_key(seed: int, layer: int) -> int:
    """The start of the layer's SplitMix64 stream."""
    return splitmix64((splitmix64(seed) + layer) % 2**64)
