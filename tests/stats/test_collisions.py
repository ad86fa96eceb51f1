"""Collision figures: equal to the truth when exact, within their errors when sampled."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from stats.truth import (
    blocks_of,
    columns_of,
    count,
    layout_of,
    ngrams_of,
    orders_of,
    rows_of,
    zipf_documents,
)

from engram_cli.hashing.hasher import plan_layer
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.results import count_results
from engram_cli.stats.sampling.ideal import ALARM, flag, ideal_occupied
from engram_cli.stats.sampling.known import ngram_rows
from engram_cli.stats.sampling.occurrences import Occurrences
from engram_cli.stats.statistics.collisions import ColumnStats, ideal_occupied_error, ideal_shared
from engram_cli.stats.totals import Counts


def true_figures(
    documents: list[np.ndarray], layout: HashLayout
) -> dict[tuple[int, int, int], dict[str, float]]:
    """By (layer, order, head): distinct, occupied, shared, shared occurrences, most hits."""
    figures = {}
    for layer in layout.layers:
        rows = rows_of(documents, layout, layer)
        for index, order in enumerate(layout.orders):
            ngrams = ngrams_of(documents, layout, order)
            stream = _ngram_stream(documents, layout, order)
            for head in range(layout.heads):
                column = rows[index * layout.heads + head].tolist()
                row_of = dict(zip(stream, column, strict=True))
                sharers = Counter(row_of.values())
                shared = {ngram for ngram in ngrams if sharers[row_of[ngram]] > 1}
                figures[layer.layer, order, head] = {
                    "distinct": len(ngrams),
                    "occupied": len(sharers),
                    "shared": len(shared) / len(ngrams),
                    "uses": sum(ngrams[n] for n in shared) / len(column),
                    "most": max(Counter(column).values()),
                }
    return figures


def _ngram_stream(
    documents: list[np.ndarray], layout: HashLayout, order: int
) -> list[tuple[int, ...]]:
    stream = []
    for document in documents:
        padded = [layout.filler_id] * (order - 1) + document.tolist()
        stream += [tuple(padded[at : at + order]) for at in range(len(document))]
    return stream


def by_key(columns: tuple[ColumnStats, ...]) -> dict[tuple[int, int, int], ColumnStats]:
    return {(column.layer, column.order, column.head): column for column in columns}


@pytest.mark.parametrize("rows", [7, 101, 1009, 100_003])
def test_exact_figures_are_the_truth(rows: int) -> None:
    documents = zipf_documents(seed=3, count=30, length=50, size=50)
    moduli = tuple(rows + 2 * k for k in range(6))
    layout = layout_of(moduli=moduli, heads=3, layers=(0, 5))
    counts = count(documents, layout)
    found = by_key(columns_of(counts))
    truth = true_figures(documents, layout)
    assert found.keys() == truth.keys()
    for key, true in truth.items():
        column = found[key]
        assert column.occupied == true["occupied"]
        assert column.max_hits == true["most"]
        assert math.isclose(column.shared, true["shared"])
        assert math.isclose(column.shared_occurrences, true["uses"])
        assert column.shared_error == column.shared_occurrences_error == 0.0
        assert column.full_rows == 0
        assert math.isclose(column.ideal_occupied, ideal_occupied(column.rows, true["distinct"]))
    for order in orders_of(counts):
        assert order.exact
        assert order.windows == counts.tokens
        assert order.distinct == truth[0, order.order, 0]["distinct"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [2003, 20_011, 200_003])
def test_estimates_lie_within_four_standard_errors(rows: int, seed: int) -> None:
    documents = zipf_documents(seed=seed, count=40, length=500, size=1000)
    layout = layout_of(moduli=tuple(rows + 2 * k for k in range(8)), heads=4, size=1000)
    drawn = Occurrences(layout, 4000)
    counts = count_blocks(blocks_of(documents, 10_000), layout, sample_size=500, collectors=[drawn])
    found = by_key(count_results(counts, occurrences=drawn.partial())["columns"])
    truth = true_figures(documents, layout)
    for key, true in truth.items():
        column = found[key]
        assert column.occupied == true["occupied"]
        assert 0.0 < column.shared_error < 0.03
        assert abs(column.shared - true["shared"]) < 4 * column.shared_error
        assert 0.0 < column.shared_occurrences_error < 0.2
        error = 4 * column.shared_occurrences_error
        assert abs(column.shared_occurrences - true["uses"]) < error


def test_a_good_hash_is_near_the_ideal() -> None:
    documents = zipf_documents(seed=9, count=40, length=500, size=1000)
    layout = layout_of(moduli=(20_011, 20_021), heads=1, size=1000)
    for column in columns_of(count(documents, layout)):
        assert abs(column.occupied / column.ideal_occupied - 1) < 0.03
        assert abs(column.shared - column.ideal_shared) < 0.03


def test_sampled_ngrams_fall_on_the_rows_they_were_counted_on() -> None:
    documents = zipf_documents(seed=3, count=30, length=50, size=50)
    layout = layout_of(moduli=(1009, 1013, 100_003, 100_019), heads=2)
    counts = count(documents, layout)
    rows = rows_of(documents, layout, layout.layers[0])
    plan = plan_layer(layout, layout.layers[0])
    for index, sample in enumerate(counts.samples):
        stream = _ngram_stream(documents, layout, sample.order)
        local = (
            rows[2 * index : 2 * index + 2]
            - np.array(layout.layers[0].offsets)[2 * index : 2 * index + 2, None]
        )
        row_of = {ngram: local[:, at].tolist() for at, ngram in enumerate(stream)}
        found = ngram_rows(sample.tokens, plan, index, layout.heads)
        assert [row_of[tuple(ngram)] for ngram in sample.tokens.tolist()] == found.T.tolist()


def test_the_ideals_by_enumeration_and_where_doubles_are_coarse() -> None:
    assert math.isclose(ideal_occupied(2, 3), 2 * (1 - 0.5**3))
    assert math.isclose(ideal_shared(10, 2), 0.1)
    assert ideal_shared(10, 1) == ideal_shared(10, 0) == 0.0
    assert ideal_occupied(5, 0) == 0.0
    huge = 4 * 10**9
    assert math.isclose(ideal_occupied(huge, 1000), 1000 - 1000 * 999 / 2 / huge, rel_tol=1e-12)
    assert math.isclose(ideal_shared(huge, 1001), 1000 / huge, rel_tol=1e-6)
    assert math.isclose(ideal_occupied(huge, 1e15), huge)


def test_one_token_alone() -> None:
    layout = layout_of(moduli=(11, 13), heads=1)
    for column in columns_of(count([np.array([3], dtype=np.int32)], layout)):
        assert (column.occupied, column.shared, column.shared_occurrences) == (1, 0.0, 0.0)
        assert column.max_hits == 1


def test_the_error_of_the_ideal_is_that_of_throwing_balls() -> None:
    generator = np.random.default_rng(5)
    for rows, ngrams in ((1000, 100), (1000, 1000), (1000, 3000)):
        thrown = [len(np.unique(generator.integers(0, rows, ngrams))) for _ in range(4000)]
        assert math.isclose(np.std(thrown), ideal_occupied_error(rows, ngrams, 0.0), rel_tol=0.06)
    assert ideal_occupied_error(10**6, 10, 0.0) == 1.0
    slope = ideal_occupied(1000, 1010) - ideal_occupied(1000, 1000)
    known = ideal_occupied_error(1000, 1000, 0.0)
    both = ideal_occupied_error(1000, 1000, 10.0)
    assert math.isclose(both**2 - known**2, slope**2, rel_tol=0.02)


@pytest.mark.parametrize("sample_size", [500, 2**18])
def test_columns_away_from_the_ideal_are_flagged(sample_size: int) -> None:
    documents = zipf_documents(seed=9, count=40, length=500, size=1000)
    layout = layout_of(moduli=(20_011, 20_021), heads=1, size=1000)
    counts = count(documents, layout, sample_size=sample_size)
    assert [column.flag for column in columns_of(counts)] == [None, None]
    for hits in counts.hits.values():  # every row of the first column hit, few of the second's
        hits[:20_011] = np.maximum(hits[:20_011], 1)
        hits[20_011 + 2000 :] = 0
    assert [column.flag for column in columns_of(counts)] == ["above", "below"]


@pytest.mark.parametrize("ngrams", [50, 1000, 4000])
def test_an_ideal_hash_is_flagged_as_rarely_as_is_said(ngrams: int) -> None:
    """Few events, many, and nearly all rows filled: of 3,000 columns, at one chance in 100."""
    generator = np.random.default_rng(ngrams)
    rows, columns, chance = (500 if ngrams == 4000 else 10**6), 3000, 0.01
    thrown = [len(np.unique(generator.integers(0, rows, ngrams))) for _ in range(columns)]
    flags = {each: flag(each, rows, ngrams, 0.0, chance) for each in set(thrown)}
    assert sum(flags[each] is not None for each in thrown) / columns <= chance
    beyond = ideal_occupied(rows, ngrams) - 6 * ideal_occupied_error(rows, ngrams, 0.0) - 3
    assert flag(int(beyond), rows, ngrams, 0.0, chance) == "below"


@pytest.mark.parametrize("size", [16, 400])
def test_a_sample_of_the_ngrams_does_not_raise_the_alarm(size: int) -> None:
    generator = np.random.default_rng(size)
    ngrams, rows, chance, alarms = 5000, 20_000, 0.01, 0
    for _ in range(800):
        occupied = len(np.unique(generator.integers(0, rows, ngrams)))
        threshold = np.partition(generator.random(ngrams), size)[size]
        guess = size / threshold
        error = guess * math.sqrt((1 - size / guess) / (size - 1))
        alarms += flag(occupied, rows, guess, error, chance) is not None
    assert alarms / 800 <= chance


def test_the_chance_is_that_of_all_columns_together() -> None:
    layout = layout_of(moduli=(101,) * 16, heads=8, layers=tuple(range(4)))
    assert ALARM == 0.001
    counts = count(zipf_documents(seed=1, count=3, length=20, size=50), layout)
    for column in columns_of(counts):
        own = flag(column.occupied, 101, column_distinct(counts, column.order), 0.0, ALARM / 64)
        assert column.flag == own


def column_distinct(counts: Counts, order: int) -> float:
    return next(sample.distinct for sample in counts.samples if sample.order == order)
