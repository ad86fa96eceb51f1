"""Hot rows and caches equal their plain twins: sorting, and an OrderedDict."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Generator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats.truth import layout_of, rows_of, section

from engram_cli.corpus.base import TokenBlock
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.counting.holdout import Holdout
from engram_cli.stats.counting.token_chunk import SegmentSplitter, TokenChunk
from engram_cli.stats.statistics.locality import SHARES, Locality
from engram_cli.stats.statistics.lru import LruCounts, LruObserver

LAYOUT = layout_of(moduli=(1009, 1013, 8009, 8011), heads=2, size=300, layers=(1, 4))
_GENERATOR = np.random.default_rng(3)
_WEIGHTS = 1.0 / np.arange(1, 301)
IDS = _GENERATOR.choice(300, 70_000, p=_WEIGHTS / _WEIGHTS.sum()).astype(np.int32)
STARTS = np.arange(len(IDS)) % 997 == 0


def blocks(size: int) -> Generator[TokenBlock, None, None]:
    """The corpus in blocks of `size` tokens."""
    for begin in range(0, len(IDS), size):
        end = begin + size
        yield TokenBlock(ids=IDS[begin:end], starts=STARTS[begin:end], size=0, locate=str)


def chunks(rows: np.ndarray, size: int) -> Generator[tuple[np.ndarray, TokenChunk], None, None]:
    """Rows as a watcher is shown them, in chunks of `size` tokens."""
    stretcher, hasher = SegmentSplitter(), StreamHasher(LAYOUT)
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        ids, starts = np.zeros(len(part), dtype=np.int32), np.zeros(len(part), dtype=bool)
        yield (
            part,
            TokenChunk(
                window=hasher.push(ids),
                ids=ids,
                starts=starts,
                segments=stretcher.push(starts, ((0, ""),)),
                files=((0, ""),),
                position=begin,
            ),
        )


def cached(rows: np.ndarray, size: int, partition: int) -> int:
    """The hits of a cache that throws out the least recently used row."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for at, row in enumerate(rows.tolist()):
        if at % partition == 0:
            cache.clear()
        if row in cache:
            hits += 1
            cache.move_to_end(row)
        else:
            cache[row] = None
            if len(cache) > size:
                cache.popitem(last=False)
    return hits


def zipf_rows(count: int, rows: int, seed: int) -> np.ndarray:
    """Rows as unevenly used as those of words, in bursts."""
    generator = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, rows + 1)
    ranks = generator.choice(rows, count, p=weights / weights.sum())
    again = generator.random(count) < 0.3
    ranks[50:][again[50:]] = ranks[:-50][again[50:]]
    return generator.permutation(rows)[ranks].astype(np.uint32)


def followed(observer: LruObserver, rows: np.ndarray, size: int) -> LruCounts:
    """What an observer finds that is shown rows in chunks of `size` tokens."""
    for part, chunk in chunks(rows, size):
        observer.push_rows(part, chunk)
    return observer.counts()


@given(size=st.integers(1, 5000), partition=st.integers(100, 20_000), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_all_rows_followed_give_the_hits_of_a_cache(size: int, partition: int, seed: int) -> None:
    rows = zipf_rows(6000, 700, seed)
    found = followed(LruObserver(700, 10_000, partition), rows, size)
    assert found.rate == 1.0
    expected = [cached(rows, capacity, partition) / 6000 for capacity in found.cache_rows]
    assert found.hit_rates() == pytest.approx(expected, abs=1e-12)
    assert found.cache_rows == [16, 32, 64, 128, 256, 512, 700]


def test_a_sample_of_rows_lies_within_its_error() -> None:
    """Whichever rows the hash chooses: rows are renamed, which changes nothing of the truth."""
    base, total = zipf_rows(40_000, 20_000, 1), 20_011
    everything = followed(LruObserver(total, total), base, 7_000)
    truth = dict(zip(everything.cache_rows, everything.hit_rates(), strict=True))
    assert everything.errors() == (0.0,) * len(truth)
    off = []
    for seed in range(25):
        generator = np.random.default_rng(seed)
        factor, shift = generator.integers(1, total), generator.integers(total)
        rows = ((base.astype(np.int64) * factor + shift) % total).astype(np.uint32)
        found = followed(LruObserver(total, 2_000), rows, 7_000)
        assert found.rate == pytest.approx(0.1, rel=0.1)
        figures = zip(found.cache_rows, found.hit_rates(), found.errors(), strict=True)
        off += [abs(rate - truth[size]) / error for size, rate, error in figures]
    within = np.mean(np.array(off) < 2)
    assert within > 0.9, off
    assert max(off) < 4
    assert np.mean(np.array(off) > 0.5) > 0.2  # errors that are far too large would tell nothing


def test_two_partitions_add_up() -> None:
    rows = zipf_rows(8000, 700, 1)
    whole, one, two = (
        followed(LruObserver(700, 100, 4000), part, 1000)
        for part in (rows, rows[:4000], rows[4000:])
    )
    assert one.merge(two).hit_rates() == two.merge(one).hit_rates() == whole.hit_rates()


def test_hot_rows_are_those_of_sorting() -> None:
    holdout = Holdout(0.3)
    locality = Locality(LAYOUT, holdout)
    counts = count_blocks(blocks(4000), LAYOUT, collectors=[locality], holdout=holdout)
    found = section(locality, counts)
    assert found["held_out_tokens"] == holdout.held.tokens > 0
    ids, starts = holdout.held.sample()
    documents = np.split(ids, np.flatnonzero(starts)[1:])
    assert len(found["hot"]) == 4
    for entry in found["hot"]:
        layer = LAYOUT.layer(entry["layer"])
        columns = [0, 1] if entry["order"] == 2 else [2, 3]
        first = layer.offsets[columns[0]]
        hits = counts.hits[layer.layer][first : first + sum(layer.moduli[c] for c in columns)]
        held = rows_of(documents, LAYOUT, layer)[columns].reshape(-1) - first
        looked = np.bincount(held, minlength=len(hits)).astype(float)
        # Rows with as many hits share what they catch.
        for value in np.unique(hits):
            looked[hits == value] = looked[hits == value].mean()
        order = np.argsort(-hits.astype(np.int64), kind="stable")
        assert entry["rows_share"] == list(SHARES)
        for name, weights in (("counted", hits.astype(float)), ("held_out", looked)):
            sums = np.concatenate([[0.0], np.cumsum(weights[order])])
            wanted = np.interp(np.array(SHARES) * len(hits), np.arange(len(sums)), sums)
            assert entry[name] == pytest.approx(wanted / sums[-1], abs=1e-9)
            assert entry[name][-1] == pytest.approx(1.0)


def test_counters_beyond_the_histogram_are_ranked_too() -> None:
    layout = layout_of(moduli=(3, 5), heads=1)
    locality = Locality(layout)
    counts = count_blocks(
        (
            TokenBlock(ids=np.zeros(2**17, np.int32), starts=s, size=0, locate=str)
            for s in [np.zeros(2**17, dtype=bool)] * 2
        ),
        layout,
        collectors=[locality],
    )
    for entry in section(locality, counts)["hot"]:
        assert entry["counted"][-2] > 0.99
        assert entry["held_out"] is None


@given(size=st.integers(500, 40_000), threads=st.integers(1, 5), held=st.booleans())
@settings(max_examples=8, deadline=None)
def test_blocks_and_threads_change_nothing(size: int, threads: int, held: bool) -> None:
    def found(size: int, threads: int) -> str:
        holdout = Holdout(0.3, 500) if held else None
        locality = Locality(LAYOUT, holdout, sampled_rows=200)
        counts = count_blocks(
            blocks(size), LAYOUT, threads=threads, collectors=[locality], holdout=holdout
        )
        return json.dumps(section(locality, counts))

    assert found(size, threads) == found(10_000, 1)
