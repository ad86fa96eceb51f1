"""The sample is the k smallest hashes with exact counts, and estimates what it says it does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats.truth import blocks_of, count, hash_by_hand, layout_of, ngrams_of, zipf_documents

from engram_cli.errors import InputError, MismatchError
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.stats.counting import kernels
from engram_cli.stats.sampling.distinct import (
    EVERYTHING,
    NgramSample,
    Sampler,
    hash_ngrams,
    next_threshold,
    sampler_bytes,
    table_entries,
)

ORDERS = (1, 2, 3, 4, 5)
LAYOUT = layout_of(moduli=(10007,) * 5, heads=1, orders=ORDERS, eos_id=7)
DOCUMENTS = zipf_documents(seed=2, count=60, length=40, size=50)


def samples(size: int) -> tuple[NgramSample, ...]:
    return count(DOCUMENTS, LAYOUT, sample_size=size).samples


def as_dict(sample: NgramSample) -> dict[tuple[int, ...], int]:
    pairs = zip(sample.tokens.tolist(), sample.counts.tolist(), strict=True)
    return {tuple(ngram): times for ngram, times in pairs}


def test_a_sample_larger_than_the_corpus_is_the_truth() -> None:
    for sample in samples(10_000):
        truth = ngrams_of(DOCUMENTS, LAYOUT, sample.order)
        assert as_dict(sample) == truth
        assert sample.exact
        assert sample.distinct == len(truth)
        assert sample.distinct_error == 0.0


@pytest.mark.parametrize("size", [16, 40])
def test_a_smaller_one_is_the_smallest_hashes_with_exact_counts(size: int) -> None:
    for sample in samples(size):
        truth = ngrams_of(DOCUMENTS, LAYOUT, sample.order)
        ranked = sorted(truth, key=hash_by_hand)
        assert as_dict(sample) == {ngram: truth[ngram] for ngram in ranked[:size]}
        assert sample.threshold == hash_by_hand(ranked[size])
        assert np.array_equal(hash_ngrams(sample.tokens), sample.hashes)
        assert bool(np.all(np.diff(sample.hashes.astype(object)) > 0))


def test_as_many_as_there_are_is_still_exact() -> None:
    distinct = len(ngrams_of(DOCUMENTS, LAYOUT, 2))
    exact, short = samples(distinct)[1], samples(distinct - 1)[1]
    assert (exact.exact, short.exact) == (True, False)
    assert len(exact.hashes) == distinct


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=7))
def test_the_hash_equals_the_one_by_hand(ngram: list[int]) -> None:
    found = hash_ngrams(np.array([ngram, ngram], dtype=np.int32))
    assert found.tolist() == [hash_by_hand(tuple(ngram))] * 2


@given(
    parts=st.lists(st.integers(0, 2), min_size=len(DOCUMENTS), max_size=len(DOCUMENTS)),
    size=st.sampled_from([16, 50, 5000]),
)
@settings(max_examples=20, deadline=None)
def test_samples_merge_however_documents_are_dealt_out(parts: list[int], size: int) -> None:
    dealt = [[d for d, p in zip(DOCUMENTS, parts, strict=True) if p == k] for k in range(3)]
    counted = [
        count(documents, LAYOUT, sample_size=size).samples for documents in dealt if documents
    ]
    for index, whole in enumerate(samples(size)):
        merged = counted[0][index]
        for other in counted[1:]:
            merged = other[index].merge(merged)
        assert as_dict(merged) == as_dict(whole)
        assert (merged.threshold, merged.size) == (whole.threshold, whole.size)


def test_other_orders_and_sizes_do_not_merge() -> None:
    one, two = samples(16)[:2]
    with pytest.raises(MismatchError, match="do not merge"):
        one.merge(two)
    with pytest.raises(MismatchError, match="do not merge"):
        one.merge(samples(17)[0])


@pytest.mark.parametrize("seed", range(5))
def test_the_estimate_lies_within_its_error(seed: int) -> None:
    documents = zipf_documents(seed=seed, count=50, length=400, size=1000)
    layout = layout_of(moduli=(10007,) * 3, heads=1, orders=(2, 3, 4), size=1000)
    for sample in count(documents, layout, sample_size=1000).samples:
        truth = len(ngrams_of(documents, layout, sample.order))
        assert truth > 4000
        assert 0.02 * truth < sample.distinct_error < 0.04 * truth
        assert abs(sample.distinct - truth) < 4 * sample.distinct_error


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("highest", [0, 2**55, 2**63, EVERYTHING - 1])
def test_the_positions_of_low_hashes_are_chosen(count: int, highest: int) -> None:
    hashes = np.random.default_rng(count).integers(0, 2**64, count, dtype=np.uint64)
    hashes[::7] = highest
    hashes[1::9] = 0
    kept = np.empty(count, dtype=np.int64)
    chosen = kernels.choose(hashes, np.uint64(highest), kept)
    assert kept[:chosen].tolist() == np.flatnonzero(hashes <= np.uint64(highest)).tolist()


@pytest.mark.parametrize("spare", [0, -1])
def test_the_highest_hash_is_kept_too(spare: int) -> None:
    ngram = np.array([3, 5], dtype=np.int32)
    slots, tokens = np.zeros(32, np.uint64), np.zeros((16, 2), np.int32)
    entries = np.zeros(1, np.int64)
    highest = np.uint64(hash_by_hand((3, 5)) + spare)
    reach, hashes = np.full(1, 2, np.uint8), np.zeros(1, np.uint64)
    kernels.ngram_hashes(ngram, reach, 0, 2, hashes)
    done = kernels.sample_ngrams(hashes, ngram, reach, 0, 0, highest, 8, slots, tokens, entries)
    assert (done, int(entries[0])) == (1, 1 + spare)


@given(
    st.lists(st.integers(1, 2**64 - 1), max_size=12, unique=True),
    st.integers(1, 2**64 - 1),
    st.integers(0, 15),
)
def test_dropping_leaves_a_table_in_which_the_rest_is_found(
    hashes: list[int], threshold: int, crowd: int
) -> None:
    """Also where many want the same slot and the crowd runs over the end of the table."""
    keys = np.array([key // 16 * 16 + crowd if key % 3 else key for key in hashes], np.uint64)
    keys = np.unique(keys[keys > 0])
    slots, tokens = np.zeros(32, np.uint64), np.zeros((16, 2), np.int32)
    ngrams = np.stack([np.arange(len(keys)), -np.arange(len(keys))], axis=1).astype(np.int32)
    counts = np.arange(len(keys), dtype=np.uint64) + np.uint64(7)
    kernels.fill_slots(keys, counts, ngrams, slots, tokens)
    left = kernels.drop_from(slots, tokens, np.uint64(threshold))
    kept = keys < threshold
    assert left == np.count_nonzero(kept) == np.count_nonzero(slots[::2])
    for key, times, ngram in zip(keys[kept], counts[kept], ngrams[kept], strict=True):
        at = kernels.find_slot(slots, key, np.uint64(15))
        assert (slots[at], slots[at + 1]) == (key, times)
        assert tokens[at // 2].tolist() == ngram.tolist()


def test_thresholds_fall_as_the_stream_grows() -> None:
    hasher, sampler = StreamHasher(LAYOUT), Sampler(5, LAYOUT.filler_id, 64)
    thresholds = [EVERYTHING]
    for block in blocks_of(DOCUMENTS, 200):
        window = hasher.push(block.ids, starts=block.starts)
        hashes = np.empty(len(window), dtype=np.uint64)
        sampler.hash(window, hashes)
        sampler.push_hashes(hashes, window)
        thresholds.append(sampler.sample().threshold)
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) > 5


@given(
    hashes=st.lists(st.integers(1, 2**64 - 2), min_size=2, max_size=40, unique=True),
    crowd=st.integers(0, 63),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_the_next_threshold_is_the_hash_after_the_smallest(
    hashes: list[int], crowd: int, data: st.DataObject
) -> None:
    """Also where hashes crowd in few bins, or are all small."""
    keys = np.unique(np.array([(value >> crowd) + 1 for value in hashes], dtype=np.uint64))
    size = data.draw(st.integers(0, len(keys) - 1))
    slots = np.zeros(128, dtype=np.uint64)
    counts, none = np.ones(len(keys), dtype=np.uint64), np.empty((0, 0), dtype=np.int32)
    kernels.fill_slots(keys, counts, none, slots, none)
    threshold = data.draw(st.integers(int(keys[-1]) + 1, EVERYTHING))
    assert next_threshold(slots, threshold, size) == int(keys[size])


@pytest.mark.parametrize("size", [0, 15, 2**23 + 1, -1])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(InputError, match=f"a sample of {size} n-grams"):
        Sampler(2, 0, size)


@pytest.mark.parametrize("size", [16, 17, 1000, 2**18])
def test_the_table_has_room_beyond_its_limit(size: int) -> None:
    entries = table_entries(size)
    assert entries >= 2 * size > size + size // 2 + 1
    assert entries & (entries - 1) == 0
    assert sampler_bytes(3, size) >= entries * 28
