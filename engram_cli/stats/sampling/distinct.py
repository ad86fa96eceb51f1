"""Estimates how many distinct n-grams there are from a sample of them by hash.

The sample of an order is the k n-grams with the smallest 64-bit hashes. An n-gram is the tuple of
compressed ids that is hashed, with the filler at blocked positions. The threshold only falls, so an
n-gram in the final sample was in it from its first occurrence: its count is exact, and the sample
does not depend on the order of reading, on splits or on threads. Samples of two corpora merge into
the sample of both.

Source of the estimator: Bar-Yossef et al., "Counting distinct elements in a data stream" (2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError, MismatchError
from engram_cli.hashing.hasher import Window
from engram_cli.registry import LazyModule
from engram_cli.stats.state import State, check, scalar, take, take_scalar

kernels = LazyModule("engram_cli.stats.counting.kernels")
key_kernels = LazyModule("engram_cli.stats.counting.key_kernels")

DEFAULT_SAMPLE = 2**18
LEAST_SAMPLE, MOST_SAMPLE = 16, 2**23
EVERYTHING = 2**64  # the threshold below which every hash lies
Chosen: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint16]]
"""The hashes, words and places of some n-grams."""
_BIN_BITS = 12  # a threshold is looked for among few hashes: 1.5 ms for 393,216, and 5 among all


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NgramSample:
    """The n-grams of one order whose hash is below `threshold`, and how often each occurred.

    `hashes` uint64[S] ascending, `counts` uint64[S], `tokens` int32[S, order] oldest first; S is
    `size` unless there are fewer distinct n-grams, and then the sample is all of them.
    """

    order: int
    size: int
    threshold: int
    hashes: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    tokens: NDArray[np.int32]

    @property
    def exact(self) -> bool:
        """Whether every n-gram is in the sample."""
        return self.threshold == EVERYTHING

    @property
    def distinct(self) -> float:
        """The number of distinct n-grams: an unbiased estimate unless `exact`."""
        return len(self.hashes) * (EVERYTHING / self.threshold)

    @property
    def distinct_error(self) -> float:
        """The standard error of `distinct`; 0 when exact."""
        if self.exact:
            return 0.0
        unseen = 1.0 - len(self.hashes) / self.distinct
        return self.distinct * math.sqrt(max(unseen, 0.0) / (len(self.hashes) - 1))

    def merge(self, other: NgramSample) -> NgramSample:
        """Return the sample of both corpora. Raises MismatchError for another order or size."""
        if (self.order, self.size) != (other.order, other.size):
            raise MismatchError(
                f"samples of {self.size} {self.order}-grams and of {other.size} {other.order}-grams"
                " do not merge",
                "count both corpora with the same layout and --sample-size",
            )
        threshold = min(self.threshold, other.threshold)
        hashes = np.concatenate([self.hashes, other.hashes])
        counts = np.concatenate([self.counts, other.counts])
        tokens = np.concatenate([self.tokens, other.tokens])
        hashes, first, which = np.unique(hashes, return_index=True, return_inverse=True)
        sums = np.zeros(len(hashes), dtype=np.uint64)
        np.add.at(sums, which, counts)
        return lowest(self.order, self.size, threshold, hashes, sums, tokens[first])


def lowest(
    order: int,
    size: int,
    threshold: int,
    hashes: NDArray[np.uint64],
    counts: NDArray[np.uint64],
    tokens: NDArray[np.int32],
) -> NgramSample:
    """Return the `size` n-grams with the smallest of all hashes below `threshold`, which ascend."""
    below = len(hashes)
    if threshold < EVERYTHING:
        below = int(np.searchsorted(hashes, np.uint64(threshold)))
    if below > size:
        threshold, below = int(hashes[size]), size
    return NgramSample(
        order=order,
        size=size,
        threshold=threshold,
        hashes=hashes[:below],
        counts=counts[:below],
        tokens=tokens[:below],
    )


def hash_ngrams(ngrams: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return the hashes uint64[S] of n-grams int32[S, n], oldest token first.

    Two tokens at a time, the newest first, as the kernel `ngram_hashes` does at every position.
    """
    newest = ngrams[:, ::-1].astype(np.uint32).astype(np.uint64)
    hashes = np.zeros(len(ngrams), dtype=np.uint64)
    for lag in range(0, ngrams.shape[1], 2):
        hashes ^= newest[:, lag]
        if lag + 1 < ngrams.shape[1]:
            hashes ^= newest[:, lag + 1] << np.uint64(32)
        hashes = _scramble(hashes)
    return np.maximum(hashes, np.uint64(1))


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of SplitMix64 of each value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Sampler:
    """Draws the sample of one order from a stream of windows."""

    def __init__(self, order: int, filler: int, size: int = DEFAULT_SAMPLE) -> None:
        """Raise InputError for an impossible size."""
        check_size(size)
        self.order = order
        self.size = size
        self._filler = filler
        self._limit = size + size // 2
        entries = table_entries(size)
        self._slots = np.zeros(2 * entries, dtype=np.uint64)
        self._tokens = np.zeros((entries, order), dtype=np.int32)
        self._entries = np.zeros(1, dtype=np.int64)
        self._threshold = EVERYTHING
        self._lock = Lock()

    def hash(self, window: Window, out: NDArray[np.uint64]) -> None:
        """Compute the hashes [T] of the n-grams at every position."""
        kernels.ngram_hashes(window.tokens, window.seen, self._filler, self.order, out)

    def push_hashes(self, hashes: NDArray[np.uint64], window: Window) -> None:
        """Count the n-grams at every position of `window`, whose hashes are known."""
        given = (hashes, window.tokens, window.seen, self._filler)
        self._push(kernels.sample_ngrams, len(window), *given)

    def choose_keys(
        self,
        words: NDArray[np.uint64],
        places: NDArray[np.uint16],
        bits: int,
        scratch: NDArray[np.uint32],
    ) -> Chosen:
        """Return those of some n-grams [n] that the sample may hold; see `key_kernels`.

        `scratch`: 3 n or more. Any thread may do so while another pushes: the threshold only falls.
        """
        count = len(words)
        hashes, chosen = scratch[: 2 * count].view(np.uint64), scratch[2 * count : 3 * count]
        highest = np.uint64(self._threshold - 1)
        found = key_kernels.choose_keys(words, places, bits, self.order, highest, hashes, chosen)
        which = chosen[:found]
        return hashes[:found].copy(), words[which], places[which]

    def push_keys(self, chosen: Chosen, bits: int) -> None:
        """Count n-grams that `choose_keys` gave as often as they occurred, one thread at a time."""
        with self._lock:
            self._push(key_kernels.sample_keys, len(chosen[0]), *chosen, bits)

    def _push(self, kernel: Callable[..., int], count: int, *given: Any) -> None:
        """Call a kernel until it has counted `count` places; it stops where the table is full."""
        done = 0
        while done < count:
            highest = np.uint64(self._threshold - 1)
            held = (self._slots, self._tokens, self._entries)
            done = kernel(*given, done, highest, self._limit, *held)
            if self._entries[0] > self._limit:
                self._lower()

    def sample(self) -> NgramSample:
        """Return the sample of all that was pushed."""
        hashes, counts, tokens = self._held()
        order = np.argsort(hashes)
        return lowest(
            self.order, self.size, self._threshold, hashes[order], counts[order], tokens[order]
        )

    def state(self) -> State:
        """Return the entries and the threshold."""
        hashes, counts, tokens = self._held()
        highest = scalar(self._threshold - 1, np.uint64)
        return {"highest": highest, "hashes": hashes, "counts": counts, "tokens": tokens}

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        highest = take_scalar(state, "highest", 0, EVERYTHING - 1)
        hashes = take(state, "hashes", np.uint64, (-1,))
        counts = take(state, "counts", np.uint64, (len(hashes),))
        tokens = take(state, "tokens", np.int32, (len(hashes), self.order))
        check(sound_entries(hashes, highest, self._limit), "hashes")
        self._threshold = highest + 1
        self._slots.fill(0)
        kernels.fill_slots(hashes, counts, tokens, self._slots, self._tokens)
        self._entries[0] = len(hashes)

    def _held(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int32]]:
        slots = self._slots.reshape(-1, 2)
        live = np.flatnonzero(slots[:, 0])
        return slots[live, 0], slots[live, 1], self._tokens[live]

    def _lower(self) -> None:
        """Lower the threshold to the hash after the `size` smallest, and drop all others."""
        self._threshold = next_threshold(self._slots, self._threshold, self.size)
        threshold = np.uint64(self._threshold)
        self._entries[0] = kernels.drop_from(self._slots, self._tokens, threshold)


def next_threshold(slots: NDArray[np.uint64], threshold: int, size: int) -> int:
    """Return the hash after the `size` smallest in `slots`, which holds more, all below
    `threshold`."""
    shift = max((threshold - 1).bit_length() - _BIN_BITS, 0)
    bins = np.zeros(1 << _BIN_BITS, dtype=np.int64)
    kernels.bin_hashes(slots, np.uint64(shift), bins)
    ends = np.cumsum(bins)
    own = int(np.searchsorted(ends, size, side="right"))
    hashes = np.empty(int(bins[own]), dtype=np.uint64)
    kernels.hashes_of_bin(slots, np.uint64(shift), np.uint64(own), hashes)
    rank = size - int(ends[own] - bins[own])
    return int(np.partition(hashes, rank)[rank])


def sound_entries(hashes: NDArray[np.uint64], highest: int, limit: int) -> bool:
    """Return whether these may be the hashes of a sampler: few enough, distinct, in range."""
    if len(hashes) > limit or not len(hashes):
        return not len(hashes)
    ordered = np.sort(hashes)
    different = not np.any(ordered[1:] == ordered[:-1])
    return bool(different and ordered[0] > 0 and int(ordered[-1]) <= highest)


def check_size(size: int) -> None:
    """Raise InputError for an impossible sample size."""
    if not LEAST_SAMPLE <= size <= MOST_SAMPLE:
        raise InputError(
            f"a sample of {size} n-grams", f"give --sample-size {LEAST_SAMPLE} to {MOST_SAMPLE}"
        )


def table_entries(size: int) -> int:
    """Return the entries that the table of a sampler has room for: a power of two, 2 k or more."""
    return int(1 << (2 * size - 1).bit_length())


def sampler_bytes(order: int, size: int) -> int:
    """Return the bytes of a sampler, and of what lowering its threshold copies."""
    return table_entries(size) * (16 + 4 * order) + 2 * size * (16 + 4 * order)
