"""Clean heads and row hits: equal to the truth when exact, and what an ideal hash would give."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from stats.truth import count, json_of, layout_of, ngrams_of, rows_of, zipf_documents

from engram_cli.stats.statistics import clean_heads as module
from engram_cli.stats.statistics.clean_heads import ideal_clean

DOCUMENTS = zipf_documents(seed=3, count=30, length=50, size=50)
LAYOUT = layout_of(moduli=(601, 607, 613, 2003, 2011, 2017), heads=3, layers=(0, 5))


def rows_by_ngram(layer_index: int, order_index: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The local rows of each n-gram by head, from the reference."""
    order = LAYOUT.orders[order_index]
    columns = rows_of(DOCUMENTS, LAYOUT, LAYOUT.layers[layer_index])
    rows = columns[3 * order_index : 3 * order_index + 3]
    found, at = {}, 0
    for document in DOCUMENTS:
        padded = [LAYOUT.filler_id] * (order - 1) + document.tolist()
        for position in range(len(document)):
            found[tuple(padded[position : position + order])] = tuple(rows[:, at].tolist())
            at += 1
    return found


@pytest.mark.parametrize("step", [7, 2**17])
def test_clean_heads_are_the_truth(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP", step)
    counts = count(DOCUMENTS, LAYOUT)
    found = {(entry["layer"], entry["order"]): entry for entry in json_of(counts)["clean_heads"]}
    assert list(found) == [(0, 2), (0, 3), (5, 2), (5, 3)]
    for layer, order in itertools.product((0, 1), (0, 1)):
        rows = rows_by_ngram(layer, order)
        times = ngrams_of(DOCUMENTS, LAYOUT, LAYOUT.orders[order])
        sharers = [Counter(each[head] for each in rows.values()) for head in range(3)]
        by_ngram, by_use, purity = [0] * 4, [0] * 4, 0.0
        for ngram, own in rows.items():
            clean = sum(sharers[head][own[head]] == 1 for head in range(3))
            by_ngram[clean] += 1
            by_use[clean] += times[ngram]
            for head in range(3):
                hits = counts.hits[LAYOUT.layers[layer].layer][own[head]]
                purity += times[ngram] / hits / 3 / len(rows)
        entry = found[LAYOUT.layers[layer].layer, LAYOUT.orders[order]]
        assert np.allclose(entry["ngrams"], np.array(by_ngram) / len(rows))
        assert np.allclose(entry["occurrences"], np.array(by_use) / sum(by_use))
        assert math.isclose(entry["purity"], purity, rel_tol=1e-9)
        assert math.isclose(sum(entry["ideal"]), 1.0)
        assert 0.01 < entry["ngrams"][0] < 0.9


def test_a_sample_tells_what_all_ngrams_tell() -> None:
    documents = zipf_documents(seed=1, count=40, length=500, size=1000)
    layout = layout_of(moduli=(8009, 8011, 20_011, 20_021), heads=2, size=1000)
    exact = json_of(count(documents, layout))["clean_heads"]
    sampled = json_of(count(documents, layout, sample_size=2000))["clean_heads"]
    for one, two in zip(exact, sampled, strict=True):
        assert np.allclose(one["ngrams"], two["ngrams"], atol=4 * 0.5 / math.sqrt(2000))
        assert np.allclose(one["ideal"], two["ideal"], atol=0.03)
        assert np.allclose(one["ngrams"], one["ideal"], atol=0.03)


def test_the_ideal_by_enumeration() -> None:
    dirty = [1 - (1 - 1 / m) ** 9 for m in (10, 20, 30)]
    expected = [0.0] * 4
    for heads in itertools.product((0, 1), repeat=3):
        chances = [1 - d if clean else d for clean, d in zip(heads, dirty, strict=True)]
        expected[sum(heads)] += math.prod(chances)
    assert np.allclose(ideal_clean((10, 20, 30), 10), expected)


def test_row_hits_by_powers_of_two() -> None:
    counts = count(DOCUMENTS, LAYOUT)
    for entry in json_of(counts)["row_hits"]:
        first = LAYOUT.orders.index(entry["order"]) * 3
        layer = LAYOUT.layer(entry["layer"])
        begin, end = layer.offsets[first], layer.offsets[first + 2] + layer.moduli[first + 2]
        hits = counts.hits[entry["layer"]][begin:end]
        edges = [*entry["bins"], 2 ** (len(entry["bins"]) - 1)]
        assert entry["bins"][:4] == [0, 1, 2, 4]
        assert entry["rows"] == np.histogram(hits, [*edges[:-1], edges[-1] - 0.5])[0].tolist()
        assert entry["rows"][-1] > 0
        assert sum(entry["rows"]) == end - begin


def test_the_edges_of_the_bins() -> None:
    layout = layout_of(moduli=(11, 13), heads=1)
    counts = count([np.array([3], dtype=np.int32)], layout)
    counts.hits[1][:11] = [0, 1, 2, 3, 4, 7, 8, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    entry = json_of(counts)["row_hits"][0]
    assert (len(entry["bins"]), entry["bins"][-1]) == (33, 2**31)
    assert entry["rows"] == [1, 1, 2, 2, 1, *[0] * 26, 1, 3]
