"""N-gram samples as named arrays: samples in, arrays out, and checked the way back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engram_cli.stats.distinct import (
    EVERYTHING,
    LEAST_SAMPLE,
    MOST_SAMPLE,
    NgramSample,
    hash_ngrams,
)
from engram_cli.stats.state import State, check, numbered, part_of, scalar, take, take_scalar


def samples_state(samples: Sequence[NgramSample]) -> State:
    """The arrays of one sample an order."""
    return numbered(
        [
            {
                "size": scalar(sample.size),
                "highest": scalar(sample.threshold - 1, np.uint64),
                "hashes": sample.hashes,
                "counts": sample.counts,
                "tokens": sample.tokens.reshape(-1),
            }
            for sample in samples
        ]
    )


def samples_of(
    state: State, orders: Sequence[int], ids: range, tokens: int
) -> tuple[NgramSample, ...]:
    """The samples of `orders`, of ids in `ids`, drawn from a corpus of `tokens` tokens.

    Raises ArtifactError for what no corpus of that size leaves.
    """
    found = []
    for index, order in enumerate(orders):
        own = part_of(state, index)
        hashes = take(own, "hashes", np.uint64, (-1,))
        sample = NgramSample(
            order=order,
            size=take_scalar(own, "size", LEAST_SAMPLE, MOST_SAMPLE),
            threshold=take_scalar(own, "highest", 0, EVERYTHING - 1) + 1,
            hashes=hashes,
            counts=take(own, "counts", np.uint64, (len(hashes),)),
            tokens=take(own, "tokens", np.int32, (len(hashes) * order,)).reshape(-1, order),
        )
        check(sound_sample(sample, ids, tokens), f"{index}/hashes")
        found.append(sample)
    return tuple(found)


def sound_sample(sample: NgramSample, ids: range, tokens: int) -> bool:
    """Whether a corpus of `tokens` tokens, with ids in `ids`, may leave this sample."""
    hashes, found = sample.hashes, sample.tokens
    return (
        1 <= sample.threshold <= EVERYTHING
        and len(hashes) <= sample.size
        and (sample.exact or len(hashes) == sample.size)
        and bool(np.all(hashes[1:] > hashes[:-1]))
        and (len(hashes) == 0 or 0 < int(hashes[0]) <= int(hashes[-1]) < sample.threshold)
        and (len(hashes) == 0 or (int(found.min()) in ids and int(found.max()) in ids))
        and bool(np.array_equal(hash_ngrams(found), hashes))
        and int(sample.counts.sum()) <= tokens
    )


def merged(one: Sequence[NgramSample], two: Sequence[NgramSample]) -> tuple[NgramSample, ...]:
    """The samples of both corpora. Raises MismatchError."""
    return tuple(a.merge(b) for a, b in zip(one, two, strict=True))
