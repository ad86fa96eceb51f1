"""How n-grams and used rows grow with the corpus, if its segments come in random order.

The section "growth" of stats.json. A segment arrives at the time its key says, between 0 and 1. The
least arrival of an n-gram is that of the first segment that holds it, so how many n-grams have
arrived by a time t is how many a random share t of the corpus holds. Nothing of it depends on the
order of reading, and least arrivals of two parts merge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.registry import LazyModule
from engram_cli.stats.collector import Collector, first_heads
from engram_cli.stats.counting.token_chunk import TokenChunk
from engram_cli.stats.sampling.distinct import (
    EVERYTHING,
    next_threshold,
    sound_entries,
    table_entries,
)
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
from engram_cli.stats.statistics.growth_curve import BINS, ColumnRows, OrderGrowth, growth_curve
from engram_cli.stats.totals import Counts

kernels = LazyModule("engram_cli.stats.counting.collector_kernels")
_sampling_kernels = LazyModule("engram_cli.stats.counting.kernels")

DEFAULT_SIZE = 2**14
MOST_FOLLOWED = 2**20  # n-grams of an order
MOST_ROWS = 2**16  # the rows followed of a column
_NEVER = 2**64 - 1
_BIN_SHIFT = np.uint64(64 - BINS.bit_length() + 1)
_NO_TOKENS = np.empty((0, 0), dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NgramArrivals:
    """The `size` n-grams with the smallest hashes, those below `threshold`.

    `hashes` uint64[S] ascending, `arrivals` uint64[S].
    """

    size: int
    threshold: int
    hashes: NDArray[np.uint64]
    arrivals: NDArray[np.uint64]

    def merge(self, other: NgramArrivals) -> NgramArrivals:
        """Return those of both corpora. Raises MismatchError."""
        if self.size != other.size:
            raise MismatchError(
                f"samples of {self.size} and of {other.size} n-grams do not merge",
                "count both corpora alike",
            )
        hashes = np.concatenate([self.hashes, other.hashes])
        arrivals = np.concatenate([self.arrivals, other.arrivals])
        order = np.lexsort((arrivals, hashes))
        hashes, first = np.unique(hashes[order], return_index=True)
        threshold = min(self.threshold, other.threshold)
        return _lowest(self.size, threshold, hashes, arrivals[order][first])

    def state(self) -> State:
        """Return all of it as named arrays."""
        return {
            "size": scalar(self.size),
            "highest": scalar(self.threshold - 1, np.uint64),
            "hashes": self.hashes,
            "arrivals": self.arrivals,
        }


def _lowest(
    size: int, threshold: int, hashes: NDArray[np.uint64], arrivals: NDArray[np.uint64]
) -> NgramArrivals:
    below = len(hashes)
    if threshold != EVERYTHING:
        below = int(np.searchsorted(hashes, np.uint64(threshold)))
    if below > size:
        threshold, below = int(hashes[size]), size
    return NgramArrivals(
        size=size, threshold=threshold, hashes=hashes[:below], arrivals=arrivals[:below]
    )


def _read_ngrams(state: State) -> NgramArrivals:
    """Return the n-grams of an order in a `state`. Raises ArtifactError."""
    size = take_scalar(state, "size", 1, MOST_FOLLOWED)
    highest = take_scalar(state, "highest", 0, EVERYTHING - 1)
    hashes = take(state, "hashes", np.uint64, (-1,))
    arrivals = take(state, "arrivals", np.uint64, (len(hashes),))
    ascending = bool(np.all(hashes[1:] > hashes[:-1]))
    check(ascending and sound_entries(hashes, highest, size), "hashes")
    check(highest == EVERYTHING - 1 or len(hashes) == size, "hashes")
    return NgramArrivals(size=size, threshold=highest + 1, hashes=hashes, arrivals=arrivals)


class ArrivalSampler:
    """Draws `NgramArrivals` of one order from a stream of chunks; a `NgramObserver`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._limit = size + size // 2
        self._slots = np.zeros(2 * table_entries(size), dtype=np.uint64)
        self._entries = np.zeros(1, dtype=np.int64)
        self._threshold = EVERYTHING

    def push_ngrams(self, hashes: NDArray[np.uint64], chunk: TokenChunk) -> None:
        """Note the arrivals of the n-grams at every position of a chunk, by their hashes."""
        done = 0
        while done < len(hashes):
            done = kernels.sample_arrivals(
                hashes,
                done,
                np.uint64(self._threshold - 1),
                self._limit,
                chunk.segments.begins,
                chunk.segments.keys,
                self._slots,
                self._entries,
            )
            if self._entries[0] > self._limit:
                self._threshold = next_threshold(self._slots, self._threshold, self._size)
                threshold = np.uint64(self._threshold)
                self._entries[0] = _sampling_kernels.drop_from(self._slots, _NO_TOKENS, threshold)

    def sample(self) -> NgramArrivals:
        """Return the n-grams and their least arrivals."""
        slots = self._slots.reshape(-1, 2)
        held = slots[slots[:, 0] > 0]
        hashes, arrivals = held[np.argsort(held[:, 0])].T.copy()
        return _lowest(self._size, self._threshold, hashes, arrivals)

    def load(self, sample: NgramArrivals) -> None:
        """Continue from a sample: those that it left out would not come back."""
        self._threshold = sample.threshold
        self._slots.fill(0)
        kernels.fill_arrivals(sample.hashes, sample.arrivals, self._slots)
        self._entries[0] = len(sample.hashes)


class RowArrivals:
    """The least arrivals of the rows of a column that a power of two divides; a `RowObserver`."""

    def __init__(self, rows: int) -> None:
        self._shift = max(-(-rows // MOST_ROWS) - 1, 0).bit_length()
        self.arrivals = np.full(-(-rows >> self._shift), _NEVER, dtype=np.uint64)

    def push_rows(self, rows: NDArray[np.uint32], chunk: TokenChunk) -> None:
        """Note the arrivals of the rows of the tokens of a chunk."""
        mask, shift = np.uint32((1 << self._shift) - 1), np.uint32(self._shift)
        segments = chunk.segments
        kernels.observe_rows(rows, mask, shift, segments.begins, segments.keys, self.arrivals)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GrowthPartial:
    """Least arrivals of n-grams and rows.

    `tokens` int64[BINS]: by their arrival; `ngrams`: one sample an order; `rows`: (layer, order) ->
    uint64[rows followed of the first head].
    """

    layout: HashLayout
    tokens: NDArray[np.int64]
    ngrams: tuple[NgramArrivals, ...]
    rows: dict[tuple[int, int], NDArray[np.uint64]]

    def state(self) -> State:
        """Return all of it as named arrays, 16 bytes an n-gram and 8 a row."""
        ngrams = numbered([sample.state() for sample in self.ngrams])
        rows = numbered([{"arrivals": arrivals} for arrivals in self.rows.values()])
        return nested(ngrams=ngrams, rows=rows) | {"tokens": self.tokens}

    def merge(self, other: GrowthPartial) -> GrowthPartial:
        """Return that of both parts. Raises MismatchError."""
        return GrowthPartial(
            layout=self.layout,
            tokens=self.tokens + other.tokens,
            ngrams=tuple(
                one.merge(two) for one, two in zip(self.ngrams, other.ngrams, strict=True)
            ),
            rows={key: np.minimum(rows, other.rows[key]) for key, rows in self.rows.items()},
        )

    def result(self, counts: Counts) -> tuple[OrderGrowth, ...]:
        """Return the curve of each order, and where it leads."""
        heads = first_heads(self.layout)
        return tuple(
            growth_curve(
                order,
                self.tokens,
                _arrived(sample.arrivals),
                sample.threshold / EVERYTHING,
                {
                    layer: ColumnRows(
                        rows=heads[layer, own],
                        followed=len(arrivals),
                        met=_arrived(arrivals[arrivals != np.uint64(_NEVER)]),
                    )
                    for (layer, own), arrivals in self.rows.items()
                    if own == order
                },
            )
            for order, sample in zip(self.layout.orders, self.ngrams, strict=True)
        )


def _arrived(arrivals: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return int64[BINS]: how many have arrived by the end of each bin."""
    bins = (arrivals >> _BIN_SHIFT).astype(np.int64)
    return np.cumsum(np.bincount(bins, minlength=BINS))


def read_growth(layout: HashLayout, state: State) -> GrowthPartial:
    """Return the partial in a `state`. Raises ArtifactError."""
    tokens = take(state, "tokens", np.int64, (BINS,))
    check(bool(np.all(tokens >= 0)), "tokens")
    return GrowthPartial(
        layout=layout,
        tokens=tokens,
        ngrams=tuple(
            _read_ngrams(part_of(state, f"ngrams/{index}")) for index in range(len(layout.orders))
        ),
        rows={
            key: take(state, f"rows/{index}/arrivals", np.uint64, RowArrivals(rows).arrivals.shape)
            for index, (key, rows) in enumerate(first_heads(layout).items())
        },
    )


class Growth(Collector):
    """Follows the first arrivals of n-grams, and of the rows of each order's first head."""

    name = "growth"
    ordered = False

    def __init__(self, layout: HashLayout, size: int = DEFAULT_SIZE) -> None:
        """Follow `size` n-grams of each order."""
        self._layout = layout
        self._size = size
        self._samplers = {order: ArrivalSampler(size) for order in layout.orders}
        self._tokens = np.zeros(BINS, dtype=np.int64)
        self._rows = {key: RowArrivals(rows) for key, rows in first_heads(layout).items()}

    @property
    def memory(self) -> int:
        """The bytes of tables, of copies while a threshold is lowered, and of rows."""
        one = 16 * table_entries(self._size) + 3 * 24 * self._size
        return one * len(self._samplers) + 8 * MOST_ROWS * len(self._rows)

    def push(self, chunk: TokenChunk) -> None:
        """Note when the tokens of a chunk arrive."""
        segments = chunk.segments
        lengths = np.diff(segments.begins, append=len(chunk))
        np.add.at(self._tokens, (segments.keys >> _BIN_SHIFT).astype(np.int64), lengths)

    def ngram_observer(self, order: int) -> ArrivalSampler:
        """Return the observer of an order; all are followed."""
        return self._samplers[order]

    def row_observer(self, layer: int, order: int) -> RowArrivals:
        """Return the observer of a column; every order is followed."""
        return self._rows[layer, order]

    def partial(self) -> GrowthPartial:
        """Return the n-grams and rows with their least arrivals."""
        return GrowthPartial(
            layout=self._layout,
            tokens=self._tokens,
            ngrams=tuple(sampler.sample() for sampler in self._samplers.values()),
            rows={key: column.arrivals for key, column in self._rows.items()},
        )

    def state(self) -> State:
        """Return what was found so far."""
        return self.partial().state()

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        found = read_growth(self._layout, state)
        for sampler, sample in zip(self._samplers.values(), found.ngrams, strict=True):
            check(sample.size == self._size, "size")
            sampler.load(sample)
        for key, arrivals in found.rows.items():
            self._rows[key].arrivals = arrivals
        self._tokens = found.tokens
