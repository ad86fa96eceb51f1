"""Removing documents: what is left equals a count of the documents that are left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stats.truth import blocks_of, count, layout_of, zipf_documents

from engram_cli.errors import InputError, MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector_set import make_collectors
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.names import Names
from engram_cli.stats.partial import Partial
from engram_cli.stats.removal import FullCounters, NeverCounted, remove
from engram_cli.stats.sampling.distinct import hash_ngrams
from engram_cli.stats.statistic import CollectorOptions
from engram_cli.stats.totals import FULL

LAYOUT = layout_of(moduli=(101, 103, 10007, 10009), heads=2, layers=(1, 7))
DOCUMENTS = zipf_documents(seed=4, count=24, length=40, size=50)
NAMES = Names(LAYOUT)


def partial(
    documents: list[np.ndarray], size: int, layout: HashLayout = LAYOUT, exact: bool = False
) -> Partial:
    chosen = make_collectors(CollectorOptions(exact=exact), layout, None, size)
    counts = count_blocks(
        blocks_of(documents, 10_000), layout, sample_size=size, collectors=chosen.collectors
    )
    return Partial(counts=counts, collected=chosen.partials())


def assert_same(one: Partial, two: Partial) -> None:
    first, second = one.state(), two.state()
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name


@settings(max_examples=15, deadline=None)
@given(
    gone=st.lists(st.booleans(), min_size=24, max_size=24).filter(lambda g: 0 < sum(g) < 24),
    size=st.sampled_from([100, 300, 5000]),
)
def test_what_is_left_is_what_the_others_give(gone: list[bool], size: int) -> None:
    both = list(zip(DOCUMENTS, gone, strict=True))
    whole = partial(DOCUMENTS, size)
    try:
        left = remove(whole, partial([d for d, g in both if g], size), NAMES)
    except InputError:  # fewer than 16 n-grams of the sample are left
        assume(False)
    smaller = left.partial.counts.samples[0].size
    again = partial([d for d, g in both if not g], smaller)
    assert left.left_out == ("growth", "occurrences")
    assert_same(left.partial, Partial(counts=again.counts, collected={}))
    if size == 5000:
        assert smaller == size  # samples that hold every n-gram stay complete


@settings(max_examples=10, deadline=None)
@given(
    gone=st.lists(st.booleans(), min_size=24, max_size=24).filter(lambda g: 0 < sum(g) < 24),
    size=st.sampled_from([16, 100, 5000]),
)
def test_exact_counts_stay_exact_and_keep_the_size_of_the_sample(
    gone: list[bool], size: int
) -> None:
    both = list(zip(DOCUMENTS, gone, strict=True))
    whole = partial(DOCUMENTS, size, exact=True)
    left = remove(whole, partial([d for d, g in both if g], size, exact=True), NAMES)
    again = partial([d for d, g in both if not g], size, exact=True)
    kept = {name: again.collected[name] for name in ("exact-2", "exact-3")}
    assert_same(left.partial, Partial(counts=again.counts, collected=kept))


def test_adding_then_removing_gives_the_same_counts() -> None:
    before, more = partial(DOCUMENTS[:18], 5000), partial(DOCUMENTS[18:], 5000)
    left = remove(before.merge(more), more, NAMES)
    assert_same(left.partial, Partial(counts=before.counts, collected={}))


def test_a_sample_shrinks_by_the_n_grams_that_are_gone() -> None:
    rare = [np.array([40 + i, 41 + i], dtype=np.int32) for i in range(4)]
    whole, gone = partial([*DOCUMENTS, *rare], 200), partial(rare, 200)
    left = remove(whole, gone, NAMES).partial.counts
    again = count(DOCUMENTS, LAYOUT, sample_size=5000)
    for own, true in zip(left.samples, again.samples, strict=True):
        assert own.size <= 200
        known = true.hashes < own.threshold
        assert np.array_equal(own.hashes, true.hashes[known])
        assert np.array_equal(own.counts, true.counts[known])


@pytest.mark.parametrize("size", [100, 5000])
def test_documents_that_were_never_counted_are_refused(size: int) -> None:
    whole = partial(DOCUMENTS[:20], size)
    other = [np.array([7, 7, 7, 7, 7, 7], dtype=np.int32)] * 30
    with pytest.raises(NeverCounted, match=r"documents to remove"):
        remove(whole, partial(other, size), NAMES)
    with pytest.raises(NeverCounted):
        remove(partial(DOCUMENTS[:2], size), partial(DOCUMENTS, size), NAMES)


def test_rows_tell_where_the_sample_does_not() -> None:
    """N-grams beyond the sample's threshold are refused by the hits of their rows."""
    whole = partial(DOCUMENTS[:20], 16)
    beyond = next(
        token
        for token in range(50)
        if all(
            int(hash_ngrams(np.array([[0] * (own.order - 1) + [token]], np.int32))[0])
            >= own.threshold
            for own in whole.counts.samples
        )
    )
    gone = [np.array([beyond], dtype=np.int32)] * 500
    with pytest.raises(NeverCounted, match=r"row [\d,]+ of layer 1 has 500 hits"):
        remove(whole, partial(gone, 16), NAMES)


def test_an_n_gram_is_named() -> None:
    with pytest.raises(NeverCounted, match=r"the 2-gram '#0 #7' occurs 30 times in the documents"):
        remove(
            partial(DOCUMENTS[:2], 5000),
            partial([np.array([7], dtype=np.int32)] * 30, 5000),
            NAMES,
        )


def test_full_counters_are_refused_only_where_they_are_hit() -> None:
    whole, gone = partial(DOCUMENTS, 5000), partial(DOCUMENTS[:1], 5000)
    untouched = int(np.flatnonzero(gone.counts.hits[1] == 0)[0])
    whole.counts.hits[1][untouched] = FULL
    assert remove(whole, gone, NAMES).partial.counts.hits[1][untouched] == FULL
    hit = int(np.flatnonzero(gone.counts.hits[1])[0])
    whole.counts.hits[1][hit] = FULL
    with pytest.raises(FullCounters, match=rf"row {hit} of layer 1 has a full counter"):
        remove(whole, gone, NAMES)


def test_what_cannot_be_subtracted_is_refused() -> None:
    other = layout_of(moduli=(101, 103, 10007, 10037), heads=2, layers=(1, 7))
    whole = partial(DOCUMENTS, 5000)
    with pytest.raises(MismatchError, match="two layouts"):
        remove(whole, partial(DOCUMENTS[:1], 5000, other), NAMES)
    with pytest.raises(InputError, match="no token would be left"):
        remove(whole, whole, NAMES)
    joined = Partial(
        counts=count(DOCUMENTS, LAYOUT, join_documents=True),  # type: ignore[arg-type]
        collected={},
    )
    with pytest.raises(InputError, match="joined cannot be removed"):
        remove(joined, joined, NAMES)
