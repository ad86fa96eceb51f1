"""Which n-grams occur in a part of a corpus: their hashes in, one bit each out.

A bitmap says of an n-gram that it does not occur, or that it may: others set its bit with a chance
of `load`, the share of bits set. So shares of a population are corrected for it, and have an error
that grows as the bitmap fills. Bitmaps of two parts merge by "or".
Source: linear counting, Whang, Vander-Zanden and Taylor (1990); Bloom (1970) with one hash.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats import kernels
from engram_cli.stats.state import State, check, take

# 1 MB: 6 million distinct n-grams set half of it, which doubles the error of a share.
BITS = 2**23
_SPARSE = BITS // 32  # bits set below which their positions take less room


class Membership:
    """A bitmap of the n-grams that were met."""

    def __init__(self) -> None:
        self.bits = np.zeros(BITS // 8, dtype=np.uint8)

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Set the bits of n-grams."""
        kernels.set_bits(hashes, self.bits)

    def may_hold(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """bool[T]: whether the bits of n-grams are set."""
        at = hashes & np.uint64(BITS - 1)
        bits = self.bits[at >> np.uint64(3)] >> (at & np.uint64(7)).astype(np.uint8)
        return np.asarray(bits & 1, dtype=np.bool_)

    @property
    def load(self) -> float:
        """The share of bits that are set."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64)) / BITS

    def merge(self, other: Membership) -> Membership:
        """That of both parts."""
        both = Membership()
        np.bitwise_or(self.bits, other.bits, out=both.bits)
        return both

    def partial(self) -> State:
        """The positions of the bits set, in order, or all bits where that takes less room."""
        if int(np.bitwise_count(self.bits).sum(dtype=np.int64)) < _SPARSE:
            set_at = np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))
            return {"set": set_at.astype(np.uint32)}
        return {"bits": self.bits}


def membership_of(state: State) -> Membership:
    """The bitmap in a partial. Raises ArtifactError."""
    found = Membership()
    if "bits" in state:
        found.bits = take(state, "bits", np.uint8, (BITS // 8,))
        return found
    places = take(state, "set", np.uint32, (-1,))
    check(bool(np.all(places[1:] > places[:-1])) and len(places) < _SPARSE, "set")
    check(not len(places) or int(places[-1]) < BITS, "set")
    found.add(places.astype(np.uint64))
    return found
