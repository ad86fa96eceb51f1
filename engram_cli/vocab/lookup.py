"""Vocabulary maps: int32[V] from token ids to compressed ids, their check and their digest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import VocabularyError
from engram_cli.files import sha256_bytes

HOLE = -1  # the entry of an id that no token has
MOST_VOCABULARY = 2**25  # ids that a file may claim; a few bytes can claim any number of them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VocabMap:
    """A vocabulary map: `lookup` int32[V], -1 at an id that no token has, onto 0..`size`-1.

    `pad_id`: the token id that stands before the start of a text, None where it is not known.
    """

    lookup: NDArray[np.int32]
    size: int
    pad_id: int | None = None

    def __post_init__(self) -> None:
        check_lookup(self.lookup, self.size)

    @property
    def digest(self) -> str:
        """Return the digest of the map alone: equal exactly when every token id has the same id."""
        return lookup_digest(self.lookup)

    @property
    def vocab_size(self) -> int:
        """Return V: one more than the largest token id."""
        return len(self.lookup)


def check_lookup(lookup: NDArray[np.int32], size: int) -> None:
    """Raise VocabularyError unless `lookup` is int32[V] onto 0..size-1, holes aside."""
    if lookup.dtype != np.int32 or lookup.ndim != 1 or lookup.size == 0:
        raise VocabularyError("a vocabulary map must be a non-empty int32 vector", "build it again")
    used = lookup[lookup != HOLE]
    if used.size == 0 or int(used.min()) < 0 or int(used.max()) + 1 != size:
        raise VocabularyError(
            f"the vocabulary map does not use the ids 0..{size - 1}", "build it again"
        )
    # Counted only where there are as many: an id of 2^31 would take 16 GB.
    if size > used.size or np.count_nonzero(np.bincount(used, minlength=size)) != size:
        raise VocabularyError(f"some of the {size} compressed ids have no token", "build it again")


def lookup_digest(lookup: NDArray[np.int32]) -> str:
    """Return the digest that layouts, tables and bundles carry for a vocabulary map int32[V]."""
    return sha256_bytes(b"engram vocabulary 1\n", lookup.astype("<i4", copy=False).tobytes())


def base_lookup(lookup: NDArray[np.int32], base: int) -> NDArray[np.int32]:
    """Return `lookup` int32[V] for the ids below `base`, and the ids from `base` on as they are."""
    own = np.arange(len(lookup), dtype=np.int32)
    own[:base] = lookup[:base]
    return own
