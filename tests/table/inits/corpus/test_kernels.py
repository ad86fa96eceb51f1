"""The kernels that fill rows from a corpus equal their twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table import plain

from engram_cli.table.inits.corpus import kernels


def test_projecting_equals_its_twin() -> None:
    generator = np.random.default_rng(2)
    values = generator.normal(size=(50, 70)).astype(np.float32)
    lines = generator.normal(size=(70, 9)).astype(np.float32)
    got, expected = np.empty((2, 50, 9), dtype=np.float32)
    kernels.project(values, lines, got)
    plain.project(values, lines, expected)
    np.testing.assert_array_equal(got, expected)


@given(kinds=st.integers(1, 300), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pairs_are_united_exactly(kinds: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    pairs = np.empty((1000, 2), dtype=np.uint64)
    pairs[:, 0] = generator.integers(0, kinds, 1000) << generator.integers(0, 50)
    pairs[:, 1] = generator.integers(0, 3, 1000).astype(np.uint64) << np.uint64(32)
    pairs[:, 1] |= generator.integers(1, 2**31, 1000).astype(np.uint64) >> np.uint64(20)
    pairs[:, 1] |= np.uint64(1)
    expected = plain.united(pairs.reshape(-1))
    slots = np.zeros(2 << 11, dtype=np.uint64)
    flat = pairs.reshape(-1)
    count = kernels.unite(flat, slots, 64 - 11, flat)
    assert not slots[1::2].any()
    assert count == len(expected)
    assert plain.united(flat[: 2 * count]) == expected


@pytest.mark.parametrize("width", [1, 6, 16, 33, 64, 80, 112])
@pytest.mark.parametrize("extreme", [False, True])
def test_sums_equal_their_twin(width: int, extreme: bool) -> None:
    """Sums up to the last bit of an int32, and beyond it."""
    generator = np.random.default_rng(4)
    padded = -(-width // 16) * 16
    vectors = np.zeros((1 << 10, padded), dtype=np.int16)
    vectors[:, :width] = generator.integers(-32767, 32768, (1 << 10, width))
    vectors[:3, :width] = 32767
    entries = generator.integers(0, 1 << 10, 4000).astype(np.uint64)
    entries |= generator.integers(1, 12, 4000).astype(np.uint64) << np.uint64(20)
    entries |= generator.integers(0, 16, 4000).astype(np.uint64) << np.uint64(32)
    if extreme:  # 65,536 counts on row 16, one more on row 17, each of the largest value
        hot = np.full(17, 4095, dtype=np.uint64) << np.uint64(20)
        hot[16] = 16 << 20
        first, second = (hot | np.uint64(row << 32) for row in (16, 17))
        second[16] = np.uint64(17 << 32 | 17 << 20)
        entries = np.concatenate([first, entries, second])
    begins, wanted_begins = np.empty((2, 21), dtype=np.int32)
    values, wanted_values = np.empty((2, len(entries)), dtype=np.uint32)
    kernels.sort_bucket(entries, begins, values)
    plain.sort_bucket(entries, wanted_begins, wanted_values)
    np.testing.assert_array_equal(begins, wanted_begins)
    np.testing.assert_array_equal(values, wanted_values)
    records, wanted = np.ones((2, 19, 1 + width), dtype=np.int64)
    kernels.add_rows(values, begins, np.arange(19), vectors, 1, records)
    plain.add_rows(values, begins, np.arange(19), vectors, 1, wanted)
    np.testing.assert_array_equal(records, wanted)
    if extreme:
        assert (records[16, 0], records[17, 0]) == (2**16 + 1, 2**16 + 2)
        assert records[16, 1] == 2**16 * 32767 + 1
    some, less = np.array([0, 3, 16, 18]), records[:4].copy()
    wanted_less = less.copy()
    kernels.add_rows(values, begins, some, vectors, -1, less)
    plain.add_rows(values, begins, some, vectors, -1, wanted_less)
    np.testing.assert_array_equal(less, wanted_less)
    mean = generator.normal(size=width)
    got, expected = np.empty((2, 19, width), dtype=np.float32)
    kernels.fill_rows(values, begins, vectors, mean, 0.25, got)
    plain.fill_rows(values, begins, vectors, mean, 0.25, expected)
    np.testing.assert_array_equal(got, expected)
    assert not got[18].any()
    kernels.finish(wanted, mean, 0.25, got)
    plain.finish(wanted, mean, 0.25, expected)
    np.testing.assert_array_equal(got, expected)


@given(parts=st.integers(0, 6), slots=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pairs_that_repeat_are_combined_and_none_is_lost(parts: int, slots: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    mix = generator.integers(0, 20, 900) << generator.integers(0, 50)
    tokens = generator.integers(-1, 4, 900).astype(np.int32)
    table, out = np.zeros(2 << slots, dtype=np.uint64), np.empty(2 * 901, dtype=np.uint64)
    used = 0
    for begin in (0, 400):
        span = slice(begin, begin + 400 if begin == 0 else 900)
        used = kernels.combine(mix[span], tokens[span], table, 64 - slots, out, used)
    used = kernels.drain(table, out, used)
    assert not table[1::2].any()
    some = tokens >= 0
    listed = np.stack([mix[some], tokens[some].astype(np.int64) << 32 | 1], axis=1).astype(
        np.uint64
    )
    expected = plain.united(listed.reshape(-1))
    assert plain.united(out[: 2 * used]) == expected
    sizes = np.zeros(1 << parts, dtype=np.int64)
    kernels.part_sizes(out[: 2 * used], 64 - parts, sizes) if parts else sizes.fill(used)
    assert sizes.sum() == used
    if parts:
        dealt = np.empty(2 * used, dtype=np.uint64)
        kernels.split(out[: 2 * used], 64 - parts, np.cumsum(sizes) - sizes, dealt)
        assert plain.united(dealt) == expected


def test_large_counts_are_dealt_out_in_several_entries() -> None:
    pairs = np.array([[77, 5 << 32 | 4095], [77, 5 << 32 | 4096], [90, 6 << 32 | 9000]], np.uint64)
    where = (53, 0, False, 0, 53, 4)
    sizes = np.zeros(4, dtype=np.int64)
    kernels.bucket_sizes(pairs.reshape(-1), *where, sizes)
    entries = np.empty(int(sizes.sum()), dtype=np.uint64)
    kernels.deal(pairs.reshape(-1), *where, np.cumsum(sizes) - sizes, entries)
    assert sizes.tolist() == [0, 3, 3, 0]
    found = [(int(e) >> 32, int(e) >> 20 & 0xFFF, int(e) & 0xFFFFF) for e in entries]
    assert found[:3] == [(8, 4095, 5), (8, 4095, 5), (8, 1, 5)]
    assert found[3:] == [(5, 4095, 6), (5, 4095, 6), (5, 810, 6)]
