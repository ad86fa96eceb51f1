"""Counted n-gram models of the corpus: what an exact table of the same n-grams would know.

In: the pairs of the corpus and the contexts that are asked about. Out: their followers with
counts; from these a back-off model's first choice and Witten-Bell probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.table.inits.corpus.buckets import map_pairs
from engram_cli.table.inits.corpus.pairs import TokenPairs, write_pairs

_BLOCK = 2**20  # pairs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Followers:
    """The followers of the contexts of Q questions, of one order.

    `first` int64[Q] is the most frequent one (of equals the one that is most frequent everywhere),
    -1 where the context is new; `of_truth`, `total`, `kinds` int64[Q]: how often the true one
    followed, how often any did, how many different ones.
    """

    first: NDArray[np.int64]
    of_truth: NDArray[np.int64]
    total: NDArray[np.int64]
    kinds: NDArray[np.int64]


def count_followers(
    what: TokenPairs,
    layer: int,
    order: int,
    contexts: NDArray[np.int64],
    truth: NDArray[np.int64],
    unigrams: NDArray[np.int64],
    *,
    scratch: Path,
    memory: int,
    threads: int = 1,
) -> Followers:
    """Count what follows each context (its mix) in the corpus. `unigrams`: int64[V]."""
    path = scratch / f"contexts-{order}.u64"
    write_pairs(path, what, layer, order, memory=memory, threads=threads)
    wanted, place = np.unique(contexts, return_inverse=True)
    pairs = map_pairs(path).reshape(-1, 2)
    found = [
        _matching(pairs[begin : begin + _BLOCK], wanted) for begin in range(0, len(pairs), _BLOCK)
    ]
    del pairs  # unmapped, so that the file can go
    path.unlink()
    keys = np.concatenate([np.empty(0, np.int64), *(key for key, _ in found)])
    counts = np.concatenate([np.empty(0, np.int64), *(count for _, count in found)])
    keys, inverse = np.unique(keys, return_inverse=True)
    # A pair may come once for each block of the file.
    counts = np.bincount(inverse, weights=counts, minlength=len(keys)).astype(np.int64)
    owner, token = keys >> 32, keys & 0xFFFFFFFF
    total = np.bincount(owner, weights=counts, minlength=len(wanted)).astype(np.int64)
    kinds = np.bincount(owner, minlength=len(wanted))
    best = np.lexsort((-token, unigrams[token], counts, owner))
    first = np.full(len(wanted), -1, dtype=np.int64)
    first[owner[best]] = token[best]
    return Followers(
        first=first[place],
        of_truth=_look_up(keys, counts, (place.astype(np.int64) << 32) | truth),
        total=total[place],
        kinds=kinds[place],
    )


def first_choices(orders: list[Followers], unigrams: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[Q]: the most frequent follower of the longest context that is known.

    `orders` from the shortest; at the end the most frequent token of all.
    """
    choice = np.full(len(orders[0].first), int(np.argmax(unigrams)), dtype=np.int64)
    for followers in orders:
        choice = np.where(followers.first >= 0, followers.first, choice)
    return choice


def unigram_probabilities(unigrams: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return float64[V]: shares of the corpus, each token counted once more than it is there."""
    return np.asarray((unigrams + 1) / (unigrams.sum() + len(unigrams)))


def witten_bell(
    orders: list[Followers], truth: NDArray[np.int64], unigrams: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return float64[Q]: the probability of each true token.

    Each order is mixed with the shorter ones by how many different tokens followed a context
    (Witten and Bell 1991): (count + kinds x shorter) / (total + kinds).
    """
    chance = unigram_probabilities(unigrams)[truth]
    for followers in orders:
        known = followers.total > 0
        mixed = (followers.of_truth + followers.kinds * chance) / np.maximum(
            followers.total + followers.kinds, 1
        )
        chance = np.where(known, mixed, chance)
    return chance


def _matching(
    block: NDArray[np.uint64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (index of the context << 32 | token, count) of the pairs whose mix is wanted."""
    mixes = block[:, 0].astype(np.int64)
    place = np.searchsorted(wanted, mixes)
    place[place == len(wanted)] = 0
    hit = wanted[place] == mixes
    value = block[hit, 1].astype(np.int64)
    return (place[hit] << 32) | (value >> 32), value & 0xFFFFFFFF


def _look_up(
    keys: NDArray[np.int64], counts: NDArray[np.int64], asked: NDArray[np.int64]
) -> NDArray[np.int64]:
    if not len(keys):
        return np.zeros(len(asked), dtype=np.int64)
    place = np.searchsorted(keys, asked)
    place[place == len(keys)] = 0
    return np.where(keys[place] == asked, counts[place], 0)
