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
from engram_cli.stats.counting import SLOT_BITS, TILE, key_kernels, ngram_buffer
from engram_cli.stats.counting import hit_kernels as kernels
from engram_cli.stats.counting.jobs import JobQueue
from engram_cli.stats.counting.ngram_buffer import (
    Columns,
    key_bits,
    make_counters,
    part_bits,
    parts_of,
    scratch_items,
)
from engram_cli.stats.counting.ngram_buffer import NgramCounter as Keyed
from engram_cli.stats.sampling.distinct import NgramSample, Sampler

ITEMS, TOGETHER = 2100, 3  # of a list, just above a tile; lists counted together
FULL = 2**32 - 1
KINDS = {
    "near": layout_of(moduli=(10007, 10009, 10037, 10039), heads=2),
    "slow": layout_of(moduli=(101, 103, 107, 109), heads=2),  # too small for the reciprocal
    "far": layout_of(moduli=(1_100_003, 1_300_021, 1_100_009, 2_000_003), heads=2),
    "layers": layout_of(moduli=(10007, 10009, 10037, 10039), heads=2, layers=(1, 4, 9)),
    "mixes": layout_of(moduli=(10007, 10009), heads=1, orders=(2, 5)),
}
KINDS["powers"] = replace(KINDS["near"], fold="powers")
KINDS["salted"] = replace(
    KINDS["near"],
    layers=tuple(replace(e, salts=(5, 2**40 + 1, 77, 3)) for e in KINDS["near"].layers),
)


class Plain:
    """What buffers do, one occurrence after another."""

    def __init__(self, layers: list[Columns]) -> None:
        self.layers = layers

    def push(self, window: Window) -> None:
        """Count the n-grams of a window."""
        for layer in self.layers:
            plan = layer.plan
            found = np.empty((plan.heads, len(window)), dtype=np.uint32)
            plan.of_order(layer.order).columns(window.tokens, window.seen, found)
            for column, each in zip(layer.indices, found, strict=True):
                begin, modulus = plan.offsets[column], plan.moduli[column]
                hits = layer.hits[begin : begin + modulus]
                more = np.bincount(each, minlength=modulus)
                hits[:] = np.minimum(hits.astype(np.int64) + more, FULL)


def columns_of(layout: HashLayout, order: int, first: int = 0) -> list[Columns]:
    """The columns of an order of each layer, with counters that begin at `first`."""
    return [
        Columns(
            plan=plan_layer(layout, entry),
            order=order,
            hits=np.full(entry.rows, first, dtype=np.uint32),
        )
        for entry in layout.layers
    ]


def both(
    layout: HashLayout, windows: list[Window], order: int, first: int = 0
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The hits of all layers by buffers and by `Plain`; samples agree with those by occurrence."""
    size = layout.orders[order]
    bits = key_bits(layout, size)
    sampler, plain_sampler = (Sampler(size, layout.filler_id, 64) for _ in range(2))
    fast, plain = columns_of(layout, order, first), columns_of(layout, order, first)
    counters, plainly = make_counters(fast, bits, TOGETHER, sampler, ITEMS), Plain(plain)
    needed = max(
        scratch_items(m, TOGETHER * ITEMS) for entry in layout.layers for m in entry.moduli
    )
    scratch, queue = np.empty(max(needed, 3 * ITEMS), dtype=np.uint32), JobQueue()
    tables = {each: [each.table(), each.table()] for each in counters if isinstance(each, Keyed)}
    for index, window in enumerate(windows):
        plainly.push(window)
        hashes = np.empty(len(window), dtype=np.uint64)
        plain_sampler.hash(window, hashes)
        plain_sampler.push_hashes(hashes, window)
        for counter in counters:
            if isinstance(counter, Keyed):  # as two threads would, in turn
                tables[counter][index % 2].push(window, scratch, queue)
            else:
                counter.push(window)
        queue.run_all(scratch)
    for counter, own in tables.items():
        for table in own:
            table.empty(scratch, queue)
        queue.run_all(scratch)
        while left := counter.jobs():
            queue.add(lambda jobs=left: jobs)  # type: ignore[misc]
            queue.run_all(scratch)
    if bits:
        assert same_samples(sampler.sample(), plain_sampler.sample())
    hits = [np.concatenate([each.hits for each in layers]) for layers in (fast, plain)]
    return hits[0], hits[1]


def same_samples(one: NgramSample, two: NgramSample) -> bool:
    """Whether two samples are equal to the bit."""
    names = ("hashes", "counts", "tokens")
    arrays = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in names)
    return arrays and (one.order, one.threshold) == (two.order, two.threshold)


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
    assert int(fast.sum()) == layout.heads * len(layout.layers) * 150_000


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
    ids = np.full(3 * key_kernels.MOST_TIMES + 5, 7, dtype=np.int32)
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
    times = np.ones(len(mixes), dtype=np.uint8)
    hits = np.zeros(modulus, dtype=np.uint32)
    parts = parts_of(modulus)
    items = np.empty((parts, 2 * TILE), dtype=np.uint32)
    ends, bits = np.arange(parts) * items.shape[1], part_bits(modulus)
    kernels.deal_out(mixes, times, modulus, 0, True, bits, items, ends, hits)
    assert 0 < int(hits.sum()) < len(mixes)
    kernels.count_parts(bits, items, ends, hits)
    assert (int(hits[3]), int(hits.sum())) == (len(mixes), len(mixes))


def test_first_heads_are_the_first_columns() -> None:
    for kind, layout in KINDS.items():
        window = windows_of(layout, np.arange(500, dtype=np.int32) % 50, 500)[0]
        for order in range(2):
            columns = columns_of(layout, order)[-1]
            rows = np.empty((layout.heads, len(window)), dtype=np.uint32)
            columns.plan.of_order(order).columns(window.tokens, window.seen, rows)
            first = np.empty((1, len(window)), dtype=np.uint32)
            columns.first_head().columns(window.tokens, window.seen, first)
            assert np.array_equal(first[0], rows[0]), kind


@pytest.mark.parametrize(
    ("order", "size", "bits"),
    [(1, 2, 16), (4, 2**18, 18), (4, 2**18 + 1, 0), (3, 2**24, 24), (5, 2, 0), (2, 2**31, 31)],
)
def test_bits_of_a_token_in_a_key(order: int, size: int, bits: int) -> None:
    layout = replace(KINDS["near"], lookup=None, vocab_digest=None, compressed_size=size)
    assert key_bits(layout, order) == bits
    assert key_bits(replace(layout, fold="powers"), order) == 0


@given(data=st.data(), order=st.integers(1, 4), bits=st.integers(16, 18))
@settings(max_examples=30, deadline=None)
def test_tokens_come_back_from_keys(data: st.DataObject, order: int, bits: int) -> None:
    """With the largest tokens and counts too, where words are full to the last bit."""
    token = st.one_of(st.integers(0, 2**bits - 1), st.just(2**bits - 1))
    tokens = data.draw(st.lists(token, min_size=order, max_size=40))
    count = len(tokens) - order + 1
    x, seen = np.array(tokens, dtype=np.int32), np.full(count, order, dtype=np.uint8)
    multipliers = 2 * np.arange(order, dtype=np.int64) + 3
    slots = np.zeros(1 << SLOT_BITS, dtype=np.uint64)
    words, places = np.zeros(2100, dtype=np.uint64), np.zeros(2100, dtype=np.uint16)
    listed = np.zeros(1, dtype=np.int64)
    assert kernels.combine(x, seen, 0, 0, multipliers, bits, slots, words, places, listed) == count
    assert kernels.empty_slots(slots, 0, words, places, listed) == len(slots)
    used = int(listed[0])
    mixes, times = np.empty(used, dtype=np.uint64), np.empty(used, dtype=np.uint8)
    key_kernels.key_mixes(words[:used], places[:used], multipliers, bits, mixes, times)
    expected = np.zeros(count, dtype=np.int64)
    for lag in range(order):
        expected ^= x[order - 1 - lag : len(x) - lag].astype(np.int64) * multipliers[lag]
    assert sorted(np.repeat(mixes, times).tolist()) == sorted(expected.tolist())


def test_parts_of_columns() -> None:
    assert parts_of(ngram_buffer.NEAR_ROWS) == 0
    assert parts_of(ngram_buffer.NEAR_ROWS + 1) == 33
    assert parts_of(16_000_057) == 245
    assert parts_of(2**31) == 256
    assert part_bits(2**31) <= kernels.ROW_BITS
    for rows in (2**20 + 1, 16_000_057, 2**28):
        for items in (TOGETHER * ITEMS, 2**22):
            assert scratch_items(rows, items) // parts_of(rows) > TILE
