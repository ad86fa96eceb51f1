"""Heaps' curve equals sets that grow segment by segment, whatever the order of reading."""

from __future__ import annotations

import json
from collections.abc import Generator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats.truth import layout_of, ngrams_of, plain, rows_of, section, zipf_documents

from engram_cli.corpus.base import TokenBlock
from engram_cli.errors import MismatchError
from engram_cli.stats.counting import collector_kernels as kernels
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.counting.token_chunk import SegmentSplitter
from engram_cli.stats.statistics import growth_curve as curve
from engram_cli.stats.statistics.growth import Growth, GrowthPartial
from engram_cli.stats.statistics.growth_curve import BINS
from engram_cli.stats.totals import Counts

LAYOUT = layout_of(moduli=(1009, 1013, 10007, 10009), heads=2)
# Nine files of many documents.
FILES = [zipf_documents(seed=seed, count=60, length=40, size=50) for seed in range(9)]


def blocks_of(order: list[int], size: int) -> Generator[TokenBlock, None, None]:
    """The files in this order, each cut into blocks of `size` tokens."""
    for file in order:
        ids = np.concatenate(FILES[file])
        starts = np.zeros(len(ids), dtype=bool)
        starts[np.cumsum([0, *map(len, FILES[file][:-1])])] = True
        for begin in range(0, len(ids), size):
            end = begin + size
            yield TokenBlock(
                ids=ids[begin:end],
                starts=starts[begin:end],
                size=0,
                locate=str,
                files=((0, str(file)),),
            )


def grown(order: list[int], *, size: int = 900, threads: int = 1, kept: int = 2**15) -> str:
    """The section of a run."""
    growth = Growth(LAYOUT, kept)
    counts = count_blocks(blocks_of(order, size), LAYOUT, threads=threads, collectors=[growth])
    return json.dumps(section(growth, counts))


def test_the_curve_is_that_of_sets() -> None:
    found = json.loads(grown(list(range(9))))
    keys = []
    for name, documents in enumerate(FILES):
        starts = np.zeros(sum(map(len, documents)), dtype=bool)
        starts[np.cumsum([0, *map(len, documents[:-1])])] = True
        keys += list(SegmentSplitter().push(starts, ((0, str(name)),)).keys)
    flat = [document for documents in FILES for document in documents]
    order = np.argsort(np.array(keys))
    for entry, n in zip(found, LAYOUT.orders, strict=True):
        assert entry["order"] == n
        assert entry["error"][-1] == 0.0  # all of the corpus, whichever segments come first
        assert min(entry["error"][:-1]) >= 0.0
        assert max(entry["error"]) > 0.0
        figures = (entry["tokens"], entry["distinct"], entry["occupied"][0]["rows"])
        points = {tokens: pair for tokens, *pair in zip(*figures, strict=True)}
        read, met, rows, checked = 0, set(), set(), 0
        column = (n - 2) * LAYOUT.heads
        for which in order:
            met |= set(ngrams_of([flat[which]], LAYOUT, n))
            rows |= set(rows_of([flat[which]], LAYOUT, LAYOUT.layers[0])[column].tolist())
            read += len(flat[which])
            if read in points:
                assert points[read] == [len(met), len(rows)]
                checked += 1
        assert checked >= 8
        assert read == entry["tokens"][-1]


@given(order=st.permutations(range(9)), size=st.integers(50, 3000), threads=st.integers(1, 6))
@settings(max_examples=12, deadline=None)
def test_order_blocks_and_threads_change_nothing(order: list[int], size: int, threads: int) -> None:
    for kept in (100, 2**15):
        found = grown(order, size=size, threads=threads, kept=kept)
        assert found == grown(list(range(9)), kept=kept)


def test_the_parts_merge_into_the_whole() -> None:
    def run(order: list[int]) -> GrowthPartial:
        growth = Growth(LAYOUT, 100)
        counts.append(count_blocks(blocks_of(order, 900), LAYOUT, collectors=[growth]))
        return growth.partial()

    counts: list[Counts] = []

    one, two, whole = run([0, 1, 2, 3]), run([4, 5, 6, 7, 8]), run(list(range(9)))
    for a, b in ((one, two), (two, one)):
        assert plain(a.merge(b).result(counts[-1])) == plain(whole.result(counts[-1]))
    with pytest.raises(MismatchError, match="do not merge"):
        one.merge(Growth(LAYOUT, 101).partial())


@pytest.mark.parametrize("shift", [0, 1, 4])
def test_rows_arrive_with_their_first_segment(shift: int) -> None:
    generator = np.random.default_rng(5)
    rows = generator.integers(0, 500, 1_000).astype(np.uint32)
    begins = np.array([0, 1, 65, 129, 500, 563])  # some of less than 64 rows, one of 64
    keys = generator.integers(0, 2**64, len(begins), dtype=np.uint64)
    expected = np.full(-(-500 >> shift), 2**64 - 1, dtype=np.uint64)
    found = expected.copy()
    mask = np.uint32((1 << shift) - 1)
    kernels.observe_rows(rows, mask, np.uint32(shift), begins, keys, found)
    followed = rows % (1 << shift) == 0
    which = np.searchsorted(begins, np.arange(len(rows)), side="right") - 1
    np.minimum.at(expected, rows[followed] >> shift, keys[which[followed]])
    assert np.array_equal(found, expected)


def test_a_sampled_curve_lies_within_its_error() -> None:
    exact = json.loads(grown(list(range(9))))
    sampled = json.loads(grown(list(range(9)), kept=1000))
    for one, two in zip(exact, sampled, strict=True):
        assert one["tokens"] == two["tokens"]
        off = np.array(two["distinct"]) - np.array(one["distinct"])
        assert np.all(np.abs(off) <= 4 * np.array(two["error"]) + 1e-9)
        if two["error"][-1] > 0:
            assert np.any(off != 0)


def test_a_bent_power_law_is_followed_to_the_end() -> None:
    tokens = np.linspace(1e3, 1e8, BINS)
    x = np.log(tokens / tokens[-1])
    for slope, bend in ((0.7, 0.0), (0.6, 0.05)):
        rise = slope * (x if bend == 0.0 else -np.expm1(-bend * x) / bend)
        guess = curve._predict(tokens, 1e6 * np.exp(rise), BINS, 1e9)
        far = np.log(10.0)
        right = slope * (far if bend == 0.0 else -np.expm1(-bend * far) / bend)
        assert np.log(guess / 1e6) == pytest.approx(right, rel=0.03)


def test_extrapolations_know_their_error() -> None:
    """A tenth of a Zipf source foretells the whole within what it says."""
    generator = np.random.default_rng(5)
    weights = 1.0 / np.arange(1, 20_001)
    ids = generator.choice(20_000, 400_000, p=weights / weights.sum()).astype(np.int32)
    layout = layout_of(moduli=(100003, 100019), heads=1, size=20_000)

    def of_first(count: int) -> list[dict[str, object]]:
        starts = np.arange(count) % 100 == 0
        block = TokenBlock(ids=ids[:count], starts=starts, size=0, locate=str)
        growth = Growth(layout)
        counts = count_blocks((each for each in [block]), layout, collectors=[growth])
        return section(growth, counts)

    for part, whole in zip(of_first(40_000), of_first(400_000), strict=True):
        ten, hundred = part["extrapolated"]  # type: ignore[misc]
        assert ten["tokens"] == 400_000
        truth = whole["distinct"][-1]  # type: ignore[index]
        assert abs(ten["distinct"] - truth) <= 3 * ten["error"]
        assert ten["error"] < truth / 2
        assert ten["distinct"] < hundred["distinct"] <= hundred["tokens"]
        assert 0 < ten["occupied"][0]["share"] <= 1


def test_a_handful_of_tokens_is_not_extrapolated() -> None:
    block = TokenBlock(
        ids=np.arange(5, dtype=np.int32), starts=np.arange(5) == 0, size=0, locate=str
    )
    growth = Growth(LAYOUT)
    counts = count_blocks((each for each in [block]), LAYOUT, collectors=[growth])
    for entry in section(growth, counts):
        assert entry["extrapolated"] == []
        assert entry["tokens"][-1] == 5


def test_a_larger_corpus_has_no_fewer_ngrams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law can bend down, as on one text repeated; n-grams that were met do not go away."""
    monkeypatch.setattr(curve, "_predict", lambda *_: 0.5 * LAYOUT.compressed_size)
    for entry in json.loads(grown(list(range(9)))):
        assert len(entry["extrapolated"]) == 2
        assert {each["distinct"] for each in entry["extrapolated"]} == {entry["distinct"][-1]}
