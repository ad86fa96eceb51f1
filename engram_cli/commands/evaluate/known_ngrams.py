"""What a memory could know of a held-out text: which of its n-grams are in the memory's corpus.

An n-gram of the statistics' sample has its exact count, and one that the sample would hold but does
not has none. Of any other the least hits of its rows are the most it can occur (Count-Min): zero is
certain, and "in the corpus" may be wrong where other n-grams are on every one of its rows. That is
rarer for the shortest n-grams, and no longer one is taken to be there without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engram_cli.charts import order_name
from engram_cli.commands.lookup.rows import window_ngrams
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.hashing.hasher import Window as Hashed
from engram_cli.hashing.layout import HashLayout
from engram_cli.runtime.evaluation.sums import Partition
from engram_cli.runtime.evaluation.windows import Window
from engram_cli.stats.sampling.distinct import NgramSample, hash_ngrams
from engram_cli.stats.sampling.known import HitsAt, certain_places

ABSENT, ALONE, MOSTLY_ALONE, SHARED = range(4)
SHARING = (
    "not in the corpus",
    "alone on every row",
    "alone on half or more",
    "alone on fewer",
)
BEFORE, CONTINUED = "before", "continued"  # names of partitions
NONE_KNOWN = "none"


def order_partition(order: int) -> str:
    """Return the name of the partition by what is known of the n-grams of an order."""
    return f"order-{order}"


class CorpusKnowledge:
    """Tells for each token of a window what the corpus has of the n-grams around it.

    The n-gram *before* a token ends at the token before it: its rows are what the memory adds where
    the token is predicted. A *continued* n-gram ends with the token itself: the corpus has it if
    the same token follows there.
    """

    def __init__(
        self,
        layout: HashLayout,
        layers: Sequence[int],
        hits_at: HitsAt,
        samples: Sequence[NgramSample] = (),
    ) -> None:
        """`hits_at`: the hits of table rows of a layer; `samples`: of all orders, or none."""
        self._layout, self._layers, self._hits_at = layout, tuple(layers), hits_at
        self._samples = {sample.order: sample for sample in samples}
        self._hasher = StreamHasher(layout)
        self._at: Window | None = None
        self._codes = np.empty((0, 0), dtype=np.int64)

    @property
    def exact(self) -> bool:
        """Whether the samples hold every n-gram of the corpus; if not, some only seem known."""
        samples = [self._samples.get(order) for order in self._layout.orders]
        return all(sample is not None and sample.exact for sample in samples)

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The partitions of tokens by what is known before them, and by what continues."""
        orders = self._layout.orders
        longest = (NONE_KNOWN, *(order_name(order) for order in orders))
        return (
            Partition(name=BEFORE, labels=longest, codes=lambda own: self._longest(own, 1)),
            Partition(name=CONTINUED, labels=longest, codes=lambda own: self._longest(own, 0)),
            *(
                Partition(
                    name=order_partition(order),
                    labels=SHARING,
                    codes=partial(self._of_order, index),
                )
                for index, order in enumerate(orders)
            ),
        )

    def _of_order(self, index: int, window: Window) -> NDArray[np.int64]:
        codes: NDArray[np.int64] = self._around(window, 1)[index]
        return codes

    def _longest(self, window: Window, lag: int) -> NDArray[np.int64]:
        """Return 0 where no n-gram is known, else 1 + the index of the longest order known."""
        known = self._around(window, lag) != ABSENT
        numbers = np.arange(1, len(known) + 1)[:, None]
        longest: NDArray[np.int64] = (known * numbers).max(axis=0)
        return longest

    def _around(self, window: Window, lag: int) -> NDArray[np.int64]:
        """Return int64[orders, scored]: the codes of n-grams that end `lag` before each token."""
        if window is not self._at:
            self._at, self._codes = window, self._known(window.ids)
        return self._codes[:, window.first - lag : len(window.ids) - lag]

    def _known(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[orders, T]: the code in `SHARING` of the n-gram that ends at each token."""
        layout, heads = self._layout, self._layout.heads
        self._hasher.reset()
        hashed = self._hasher.push(ids, starts=np.arange(len(ids)) == 0)
        hits: list[NDArray[np.uint32]] = []
        for layer in self._layers:
            entry = layout.layer(layer)
            offsets = np.array(entry.offsets, dtype=np.int64)[:, None]
            hits.append(self._hits_at(layer, self._hasher.columns(hashed, layer) + offsets))
        codes = np.empty((len(layout.orders), len(ids)), dtype=np.int64)
        for index, order in enumerate(layout.orders):
            own = np.concatenate([each[index * heads : (index + 1) * heads] for each in hits])
            codes[index] = _code(own, self._counts(order, hashed, own))
        # A corpus that has an n-gram has the shorter one that ends it.
        for shorter, longer in pairwise(np.argsort(layout.orders)):
            codes[longer][codes[shorter] == ABSENT] = ABSENT
        return codes

    def _counts(self, order: int, hashed: Hashed, hits: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Return uint64[T]: how often the n-grams occur, or at most so often."""
        least: NDArray[np.uint64] = hits.min(axis=0).astype(np.uint64)
        sample = self._samples.get(order)
        if sample is None:
            return least
        hashes = hash_ngrams(window_ngrams(hashed, self._layout, order))
        places, certain = certain_places(sample, hashes)
        inside = places >= 0
        exact = np.zeros(len(places), dtype=np.uint64)
        exact[inside] = sample.counts[places[inside]]
        counts: NDArray[np.uint64] = np.where(certain, exact, least)
        return counts


def _code(hits: NDArray[np.uint32], counts: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the codes in `SHARING` of n-grams with `counts` [T], whose rows have `hits` [R, T]."""
    alone = np.mean(hits <= counts, axis=0)
    codes = np.where(alone == 1.0, ALONE, np.where(alone >= 0.5, MOSTLY_ALONE, SHARED))
    return np.where(counts == 0, ABSENT, codes)
