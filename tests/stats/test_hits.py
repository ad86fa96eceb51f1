"""N-grams added up before they are counted give the hits that counting each one gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stats.truth import layout_of

from engram_cli.hashing.hasher import StreamHasher, Window, plan_layer
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.counting import hit_kernels as kernels
from engram_cli.stats.counting import ngram_buffer
from engram_cli.stats.counting.ngram_buffer import (
    Columns,
    make_buffer,
    part_bits,
    parts_of,
    scratch_items,
)

ITEMS = 70_000
FULL = 2**32 - 1
KINDS = {
    "near": layout_of(moduli=(10007, 10009, 10037, 10039), heads=2),
    "slow": layout_of(moduli=(101, 103, 107, 109), heads=2),  # too small for the reciprocal
    "far": layout_of(moduli=(1_100_003, 1_300_021, 1_100_009, 2_000_003), heads=2),
}
KINDS["powers"] = replace(KINDS["near"], fold="powers")
KINDS["salted"] = replace(
    KINDS["near"],
    layers=tuple(replace(e, salts=(5, 2**40 + 1, 77, 3)) for e in KINDS["near"].layers),
)


class Plain:
    """What `NgramBuffer` does, one occurrence after another."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def push(self, window: Window, rows: NDArray[np.uint32]) -> None:
        """Count the n-grams of a window; `rows` gets the rows of the first column."""
        plan = self.columns.plan
        found = np.empty((len(self.columns.indices), len(window)), dtype=np.uint32)
        plan.of_order(self.columns.order).columns(window.tokens, window.seen, found)
        rows[:] = found[0][: len(rows)]
        for column, each in zip(self.columns.indices, found, strict=True):
            begin, modulus = plan.offsets[column], plan.moduli[column]
            hits = self.columns.hits[begin : begin + modulus]
            more = np.bincount(each, minlength=modulus)
            hits[:] = np.minimum(hits.astype(np.int64) + more, FULL)


def columns_of(layout: HashLayout, order: int, first: int = 0) -> Columns:
    """All columns of an order, with counters that begin at `first`."""
    entry, heads = layout.layers[0], layout.heads
    return Columns(
        plan=plan_layer(layout, entry),
        order=order,
        columns=slice(order * heads, (order + 1) * heads),
        hits=np.full(entry.rows, first, dtype=np.uint32),
    )


def both(
    layout: HashLayout, windows: list[Window], order: int, first: int = 0
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The hits by `NgramBuffer` and by `Plain`, which also agree on the rows they show."""
    fast, plain = columns_of(layout, order, first), columns_of(layout, order, first)
    waiting, plainly = make_buffer(fast, ITEMS), Plain(plain)
    needed = max(scratch_items(modulus, ITEMS) for modulus in layout.layers[0].moduli)
    scratch = np.empty(needed, dtype=np.uint32)
    for window in windows:
        shown = [np.zeros(len(window), dtype=np.uint32) for _ in range(2)]
        if waiting.room < len(window):
            for job in waiting.jobs():
                job(scratch)
        waiting.push(window, shown[0])
        plainly.push(window, shown[1])
        assert np.array_equal(*shown)
    if waiting.room < 1 << kernels.SLOT_BITS:
        for job in waiting.jobs():
            job(scratch)
    for job in waiting.last_jobs():
        job(scratch)
    assert list(waiting.last_jobs()) == []
    return fast.hits, plain.hits


def windows_of(layout: HashLayout, ids: NDArray[np.int32], step: int) -> list[Window]:
    """The stream in windows of `step` tokens, with a document every 100."""
    hasher, starts = StreamHasher(layout), np.arange(len(ids)) % 100 == 0
    return [
        hasher.push(ids[begin : begin + step], starts=starts[begin : begin + step])
        for begin in range(0, len(ids), step)
    ]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_hits_are_those_of_plain_counting(kind: str, order: int) -> None:
    layout = KINDS[kind]
    ids = np.random.default_rng(3).integers(0, 50, 150_000).astype(np.int32) ** 2 // 50
    fast, plain = both(layout, windows_of(layout, ids.astype(np.int32), 40_000), order)
    assert np.array_equal(fast, plain)
    assert int(fast.sum()) == 2 * 150_000


@given(
    ids=st.lists(st.integers(0, 49), min_size=1, max_size=300),
    step=st.integers(1, 300),
    repeat=st.integers(1, 40),
)
@settings(max_examples=30, deadline=None)
def test_any_stream_in_any_pieces(ids: list[int], step: int, repeat: int) -> None:
    layout = KINDS["near"]
    stream = np.array(ids * repeat, dtype=np.int32)
    fast, plain = both(layout, windows_of(layout, stream, max(step, len(stream) // 20)), 1)
    assert np.array_equal(fast, plain)


@pytest.mark.parametrize("kind", ["near", "far"])
def test_one_ngram_over_and_over(kind: str) -> None:
    """More often than a slot can say, and into one part only."""
    layout = KINDS[kind]
    ids = np.full(3 * kernels.MOST_TIMES + 5, 7, dtype=np.int32)
    windows = [StreamHasher(layout).push(ids)]
    fast, plain = both(layout, windows, 1)
    assert np.array_equal(fast, plain)
    assert int(fast.max()) == len(ids) - 2


@pytest.mark.parametrize("kind", KINDS)
def test_full_counters_stay_full(kind: str) -> None:
    layout = KINDS[kind]
    ids = np.arange(60_000, dtype=np.int32) % 7
    fast, plain = both(layout, windows_of(layout, ids, 30_000), 0, first=FULL - 300)
    assert np.array_equal(fast, plain)
    assert int(fast.max()) == FULL


def test_a_part_that_fills_up_is_counted_at_once() -> None:
    """All n-grams in one row of the first part, more of them than the part has room for."""
    modulus = 2_000_003
    mixes = np.full(50_000, 5 * modulus + 3, dtype=np.uint64)
    times = np.ones(len(mixes), dtype=np.uint16)
    hits = np.zeros(modulus, dtype=np.uint32)
    parts = parts_of(modulus)
    items = np.empty((parts, 2 * kernels.TILE), dtype=np.uint32)
    ends = np.empty(parts, np.int64)
    kernels.count_far(mixes, times, modulus, 0, True, part_bits(modulus), items, ends, hits)
    assert (int(hits[3]), int(hits.sum())) == (len(mixes), len(mixes))


def test_parts_of_columns() -> None:
    assert parts_of(ngram_buffer.NEAR_ROWS) == 0
    assert parts_of(ngram_buffer.NEAR_ROWS + 1) == 33
    assert parts_of(16_000_057) == 245
    assert parts_of(2**31) == 0
    for rows in (2**20 + 1, 16_000_057, 2**28):
        for items in (ITEMS, 2**22):
            assert scratch_items(rows, items) // parts_of(rows) > kernels.TILE
