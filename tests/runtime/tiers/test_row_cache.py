"""The row cache: what it gives is what was put, it never grows, and hot rows stay."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engram_cli.runtime.tiers.row_cache import MAX_USES, WAYS, RowCache, slot_bytes

RECORD = 24


def records(rows: NDArray[np.int64], version: int = 0) -> NDArray[np.int64]:
    """int64[n, 3]: a record that tells its row."""
    return np.stack([rows, rows * 7 + version, -rows], axis=1)


def put(cache: RowCache, rows: NDArray[np.int64]) -> None:
    cache.put(rows, np.arange(len(rows)), records(rows))


def take(cache: RowCache, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    out = np.full((len(rows), 3), 99, dtype=np.int64)
    found = cache.take(rows, out)
    assert np.array_equal(out[found], records(rows)[found])
    return found


def rows_in(cache: RowCache) -> set[int]:
    return {int(row) for row in cache._rows.reshape(-1) if row >= 0}


REQUESTS = st.lists(st.lists(st.integers(0, 60) | st.integers(0, 2**40), max_size=40), max_size=12)


@given(requests=REQUESTS, sets=st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_it_gives_what_a_dictionary_would_or_nothing(requests: list[list[int]], sets: int) -> None:
    cache = RowCache(RECORD, sets * WAYS * slot_bytes(RECORD))
    assert cache.slots == sets * WAYS
    size = cache.nbytes
    model: dict[int, list[int]] = {}
    for request in requests:
        rows = np.array(request, dtype=np.int64)
        before = rows_in(cache)
        found = take(cache, rows)
        assert found.tolist() == [row in before for row in request]
        missing = rows[~found]
        put(cache, missing)
        model |= dict(zip(missing.tolist(), records(missing).tolist(), strict=True))
        held = rows_in(cache)
        assert held <= set(model)
        assert len(held) == np.count_nonzero(cache._rows >= 0) <= cache.slots, "each row once"
        for row in held:
            out = np.empty((1, 3), dtype=np.int64)
            assert cache.take(np.array([row]), out).all()
            assert out[0].tolist() == model[row]
    assert cache.nbytes == size <= sets * WAYS * slot_bytes(RECORD)


@given(rows=st.lists(st.integers(0, 2**62), min_size=1, max_size=64, unique=True))
@settings(max_examples=100, deadline=None)
def test_each_set_keeps_as_many_as_it_has_ways(rows: list[int]) -> None:
    cache = RowCache(RECORD, 3 * WAYS * slot_bytes(RECORD))
    wanted = np.array(rows, dtype=np.int64)
    put(cache, wanted)
    sets = cache._set_of(wanted)
    assert ((sets >= 0) & (sets < cache.sets)).all()
    kept = np.bincount(sets[take(cache, wanted)], minlength=3)
    assert np.array_equal(kept, np.minimum(np.bincount(sets, minlength=3), WAYS))


def test_a_cache_of_no_room_finds_nothing() -> None:
    cache = RowCache(RECORD, WAYS * slot_bytes(RECORD) - 1)
    assert (cache.slots, cache.nbytes) == (0, 0)
    rows = np.arange(5)
    put(cache, rows)
    assert not take(cache, rows).any()


def test_a_row_that_is_there_is_not_written_again() -> None:
    cache = RowCache(RECORD, WAYS * slot_bytes(RECORD))
    rows = np.array([4, 5])
    put(cache, rows)
    cache.put(np.array([5, 6, 6]), np.array([0, 1, 1]), records(np.array([5, 6]), version=3))
    out = np.empty((3, 3), dtype=np.int64)
    assert cache.take(np.array([4, 5, 6]), out).all()
    assert np.array_equal(out[:2], records(rows))
    assert np.array_equal(out[2], records(np.array([6]), version=3)[0])
    assert sorted(rows_in(cache)) == [4, 5, 6]


def test_rows_that_are_asked_for_stay_and_grow_old() -> None:
    cache = RowCache(RECORD, WAYS * slot_bytes(RECORD))
    hot = np.arange(3)
    put(cache, hot)
    for _ in range(3 * MAX_USES):
        assert take(cache, hot).all()
    for row in range(100, 120):  # a scan of rows that nobody asks for again
        put(cache, np.array([row]))
    assert take(cache, hot).all()
    for row in range(1000, 1000 + 8 * MAX_USES):
        put(cache, np.array([row]))
    assert not take(cache, hot).any(), "what was hot once goes in the end"


def test_rows_spread_over_the_sets() -> None:
    cache = RowCache(RECORD, 512 * WAYS * slot_bytes(RECORD))
    for rows in (np.arange(4096), np.arange(4096) * 512, np.arange(4096) * 2**21):
        counts = np.bincount(cache._set_of(rows), minlength=512)
        assert counts.max() < 40
        assert np.count_nonzero(counts) > 400


def test_threads_that_evict_each_others_rows() -> None:
    cache = RowCache(RECORD, 40 * WAYS * slot_bytes(RECORD))

    def work(seed: int) -> int:
        generator = np.random.default_rng(seed)
        hits = 0
        for _ in range(150):
            rows = np.unique(generator.integers(0, 1000, 200))
            found = take(cache, rows)
            hits += int(found.sum())
            put(cache, rows[~found])
        return hits

    with ThreadPoolExecutor(4) as pool:
        assert all(hits > 1000 for hits in pool.map(work, range(4)))
    held = cache._rows[cache._rows >= 0]
    assert len(np.unique(held)) == len(held) == cache.slots


@pytest.mark.parametrize("size", [264, 8])
def test_what_a_slot_takes(size: int) -> None:
    cache = RowCache(size, 10**6)
    assert 10**6 - WAYS * slot_bytes(size) < cache.nbytes <= 10**6
