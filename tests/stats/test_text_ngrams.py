"""All n-grams of a text equal dictionaries, whatever the memory's steps; the sample agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stats.truth import (
    blocks_of,
    columns_of,
    hash_by_hand,
    json_of,
    layout_of,
    ngrams_of,
    orders_of,
    zipf_documents,
)

from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import Collector
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.results import count_results
from engram_cli.stats.sampling import text_ngrams as module
from engram_cli.stats.sampling.distinct import NgramSample
from engram_cli.stats.sampling.occurrences import Occurrences
from engram_cli.stats.sampling.text_ngrams import Budget, ExactNgrams, exact_ngrams
from engram_cli.stats.totals import Counts

LAYOUT = layout_of(moduli=(601, 607, 2003, 2011, 2017, 2027), heads=2, orders=(2, 3, 4))


def counted(
    documents: list[np.ndarray],
    layout: HashLayout,
    others: tuple[Collector, ...] = (),
    **options: int,
) -> tuple[Counts, tuple[NgramSample, ...]]:
    tables = exact_ngrams(layout, Budget(None))
    block = options.pop("block", 10_000)
    blocks = blocks_of(documents, block)
    counts = count_blocks(blocks, layout, collectors=(*tables, *others), **options)
    return counts, tuple(table.partial().sample for table in tables)


@pytest.mark.parametrize("block", [13, 10_000])
@pytest.mark.parametrize("small", [True, False])
def test_it_is_what_dictionaries_count(
    small: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        monkeypatch.setattr(module, "_FIRST_SLOTS", 2)
        monkeypatch.setattr(module, "_BLOCK", 7)
        monkeypatch.setattr(module, "_STEP", 5)
    documents = zipf_documents(seed=3, count=30, length=50, size=50)
    _, samples = counted(documents, LAYOUT, block=block, threads=2)
    for sample in samples:
        truth = ngrams_of(documents, LAYOUT, sample.order)
        found = dict(zip(map(tuple, sample.tokens.tolist()), sample.counts.tolist(), strict=True))
        assert found == truth
        assert sample.hashes.tolist() == sorted(map(hash_by_hand, truth))
        assert [hash_by_hand(ngram) for ngram in found] == sample.hashes.tolist()
        assert sample.exact
        assert sample.distinct == len(truth)


def test_figures_by_it_are_those_of_a_complete_sample() -> None:
    documents = zipf_documents(seed=3, count=30, length=50, size=50)
    counts, samples = counted(documents, LAYOUT)
    assert all(sample.exact for sample in counts.samples)
    assert json_of(counts, samples=samples) == json_of(counts)


@pytest.mark.parametrize("seed", range(4))
def test_the_sample_agrees_within_its_errors(seed: int) -> None:
    documents = zipf_documents(seed=seed, count=40, length=500, size=1000)
    layout = layout_of(moduli=tuple(8009 + 2 * k for k in range(8)), heads=4, size=1000)
    drawn = Occurrences(layout, 2000)
    counts, samples = counted(documents, layout, (drawn,), sample_size=1000)
    columns: Any = count_results(counts, occurrences=drawn.partial())["columns"]
    for one, two in zip(orders_of(counts), orders_of(counts, samples), strict=True):
        assert two.exact
        assert not one.exact
        assert abs(one.distinct - two.distinct) < 4 * one.distinct_error
    for column, true in zip(columns, columns_of(counts, samples), strict=True):
        assert true.shared_error == true.shared_occurrences_error == 0.0
        assert abs(column.shared - true.shared) < 4 * column.shared_error
        uses = abs(column.shared_occurrences - true.shared_occurrences)
        assert uses < 4 * column.shared_occurrences_error
        ideals = abs(column.ideal_occupied - true.ideal_occupied)
        assert ideals < 4 * column.ideal_occupied_error


def test_memory_that_does_not_suffice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_SLOTS", 16)
    monkeypatch.setattr(module, "_BLOCK", 16)
    documents = zipf_documents(seed=3, count=30, length=50, size=50)
    tables = exact_ngrams(LAYOUT, Budget(20_000))
    with pytest.raises(
        InputError, match=r"all \d-grams, [\d,]+ so far, need [\d.]+ kB or more, 20.0 kB"
    ):
        count_blocks(blocks_of(documents, 100), LAYOUT, collectors=tables)
    with pytest.raises(InputError, match="all 2-grams, 0 so far"):
        exact_ngrams(LAYOUT, Budget(100))


def test_a_budget_is_shared_and_given_back() -> None:
    budget = Budget(100)
    budget.take(60, "one")
    with pytest.raises(InputError, match="two need"):
        budget.take(50, "two")
    budget.take(-60, "one")
    budget.take(100, "two")
    Budget(None).take(10**18, "three")


def test_nothing_was_counted() -> None:
    table = ExactNgrams(LAYOUT, 2, Budget(None))
    assert len(table.partial().sample.counts) == 0
