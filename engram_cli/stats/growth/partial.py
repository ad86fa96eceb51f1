"""What a part of a corpus tells about the growth of the whole: arrivals in, arrays out and back.

N-grams and rows keep their least arrivals, tokens are counted by theirs, so parts merge in any
order and grouping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.distinct import EVERYTHING, sound_entries
from engram_cli.stats.growth.arrivals import BINS, NgramArrivals
from engram_cli.stats.state import (
    State,
    check,
    nested,
    numbered,
    part_of,
    scalar,
    take,
    take_scalar,
)

MOST_FOLLOWED = 2**20  # n-grams of an order


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GrowthPartial:
    """`tokens` int64[BINS] by arrival; `ngrams`: one sample an order; `rows`: uint64 arrays, the
    least arrivals of the rows followed of each column."""

    tokens: NDArray[np.int64]
    ngrams: tuple[NgramArrivals, ...]
    rows: tuple[NDArray[np.uint64], ...]

    def state(self) -> State:
        """All of it, 16 bytes an n-gram and 8 a row."""
        ngrams = [
            {
                "size": scalar(sample.size),
                "highest": scalar(sample.threshold - 1, np.uint64),
                "hashes": sample.hashes,
                "arrivals": sample.arrivals,
            }
            for sample in self.ngrams
        ]
        rows = [{"arrivals": arrivals} for arrivals in self.rows]
        return nested(ngrams=numbered(ngrams), rows=numbered(rows)) | {"tokens": self.tokens}


def followed(state: State) -> int:
    """How many n-grams of an order a partial follows. Raises ArtifactError."""
    return take_scalar(state, "ngrams/0/size", 1, MOST_FOLLOWED)


def read_partial(state: State, orders: int, rows: Sequence[int]) -> GrowthPartial:
    """The partial in a `state`: of so many orders, of columns with so many rows followed.

    Raises ArtifactError for an unsound one.
    """
    tokens = take(state, "tokens", np.int64, (BINS,))
    check(bool(np.all(tokens >= 0)), "tokens")
    return GrowthPartial(
        tokens=tokens,
        ngrams=tuple(_ngrams(part_of(state, f"ngrams/{index}")) for index in range(orders)),
        rows=tuple(
            take(state, f"rows/{index}/arrivals", np.uint64, (count,))
            for index, count in enumerate(rows)
        ),
    )


def _ngrams(state: State) -> NgramArrivals:
    size = take_scalar(state, "size", 1, MOST_FOLLOWED)
    highest = take_scalar(state, "highest", 0, EVERYTHING - 1)
    hashes = take(state, "hashes", np.uint64, (-1,))
    arrivals = take(state, "arrivals", np.uint64, (len(hashes),))
    ascending = bool(np.all(hashes[1:] > hashes[:-1]))
    check(ascending and sound_entries(hashes, highest, size), "hashes")
    check(highest == EVERYTHING - 1 or len(hashes) == size, "hashes")
    return NgramArrivals(size=size, threshold=highest + 1, hashes=hashes, arrivals=arrivals)
