"""The sample of positions is uniform, the same however the corpus is read, and holds n-grams."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from stats.truth import blocks_of, layout_of, zipf_documents

from engram_cli.errors import ArtifactError, MismatchError
from engram_cli.hashing.lookback import visible
from engram_cli.stats.counting import kernels
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.counting.token_chunk import SEGMENT_TOKENS
from engram_cli.stats.sampling.occurrences import (
    Occurrences,
    OccurrenceSample,
    drawn_ngrams,
    read_occurrences,
)

LAYOUT = layout_of(moduli=(601, 607, 2003, 2011, 2017, 2027), heads=2, orders=(2, 3, 4))
DOCUMENTS = zipf_documents(seed=3, count=30, length=60, size=50)
TOKENS = sum(map(len, DOCUMENTS))


def sample_of(size: int, block: int = 10_000) -> OccurrenceSample:
    collector = Occurrences(LAYOUT, size)
    count_blocks(blocks_of(DOCUMENTS, block), LAYOUT, collectors=[collector])
    return collector.partial()


def positions_of(documents: list[np.ndarray]) -> list[tuple[int, ...]]:
    """The longest n-gram at every position, the filler where a document begins."""
    found = []
    for document in documents:
        seen = visible(LAYOUT, document, starts=None)
        for at in range(len(document)):
            lags = reversed(range(4))
            found.append(tuple(int(document[at - n]) if seen[at] > n else 0 for n in lags))
    return found


def test_a_large_sample_is_every_position() -> None:
    sample = sample_of(TOKENS)
    assert len(sample) == TOKENS
    assert Counter(map(tuple, sample.ngrams.tolist())) == Counter(positions_of(DOCUMENTS))
    for drawn in drawn_ngrams(sample, LAYOUT.orders):
        truth = Counter(ngram[4 - drawn.order :] for ngram in positions_of(DOCUMENTS))
        found = zip(map(tuple, drawn.tokens.tolist()), drawn.times.tolist(), strict=True)
        assert dict(found) == truth


@pytest.mark.parametrize("block", [7, 31, 500])
def test_blocks_change_nothing(block: int) -> None:
    one, two = sample_of(150, block), sample_of(150)
    assert len(one) == 150
    assert np.array_equal(one.priorities, two.priorities)
    assert np.array_equal(one.ngrams, two.ngrams)


def test_every_position_is_drawn_alike() -> None:
    """Over 4,000 segments of 40 tokens, a quarter of the positions: each about 1,000 times."""
    keys = np.random.default_rng(1).integers(0, 2**63, 4000).astype(np.uint64)
    times = np.zeros(40)
    for key in keys:
        places, priorities = np.empty(40, dtype=np.int64), np.empty(40, dtype=np.uint64)
        begins = np.zeros(1, dtype=np.int64)
        quarter = np.uint64(2**62)
        drawn = kernels.draw_positions(begins, np.array([key]), 40, 0, quarter, places, priorities)
        assert np.all(priorities[:drawn] <= quarter)
        times[places[:drawn]] += 1
    assert abs(times.mean() - 1000) < 5  # 2 of 8 each time, but for what is at the end
    assert np.all(np.abs(times - 1000) < 4.5 * np.sqrt(4000 / 4 * 0.75))


def test_priorities_are_uniform_and_do_not_repeat() -> None:
    length = 3 * SEGMENT_TOKENS
    keys, begins = np.array([11, 12, 13], dtype=np.uint64), np.arange(3) * SEGMENT_TOKENS
    places, priorities = np.empty(length, dtype=np.int64), np.empty(length, dtype=np.uint64)
    every = np.uint64(2**64 - 1)
    assert kernels.draw_positions(begins, keys, length, 0, every, places, priorities) == length
    assert sorted(places.tolist()) == list(range(length))
    assert len(np.unique(priorities)) == length
    shares = np.sort(priorities / 2.0**64)
    assert np.max(np.abs(shares - (np.arange(length) + 0.5) / length)) < 0.01


def test_samples_of_two_corpora_are_that_of_both() -> None:
    whole = sample_of(TOKENS)
    parts = [
        OccurrenceSample(size=100, priorities=whole.priorities[at::3], ngrams=whole.ngrams[at::3])
        for at in range(3)
    ]
    both = parts[2].merge(parts[0]).merge(parts[1])
    assert np.array_equal(both.priorities, whole.priorities[:100])
    assert np.array_equal(both.ngrams, whole.ngrams[:100])
    with pytest.raises(MismatchError, match="do not merge"):
        parts[0].merge(whole)


@pytest.mark.parametrize("name", ["size", "priorities", "ngrams"])
def test_what_no_counting_leaves_is_refused(name: str) -> None:
    state = sample_of(100).state()
    read_occurrences(LAYOUT, state)
    wrong = {
        "size": np.array([0]),
        "priorities": state["priorities"][::-1],
        "ngrams": state["ngrams"] + 50,
    }
    with pytest.raises(ArtifactError, match=name):
        read_occurrences(LAYOUT, state | {name: wrong[name]})
