"""The n-grams behind the figures: the right ones, readable, the same every time."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from stats.truth import blocks_of, count, layout_of, ngrams_of, rows_of, zipf_documents

from engram_cli import hash_layout
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.names import Names
from engram_cli.stats.sampling import known as known_module
from engram_cli.stats.sampling.known import (
    KnownNgrams,
    LeastHits,
    SampleHits,
    at_most,
    head_hits,
    hits_of,
    known_ngrams,
    least_hits,
)
from engram_cli.stats.sampling.occurrences import Occurrences, drawn_ngrams
from engram_cli.stats.statistic import Counted
from engram_cli.stats.statistics import top_ngrams
from engram_cli.stats.statistics import worst_rows as module
from engram_cli.stats.totals import FULL, Counts
from engram_cli.typed_json import as_json
from engram_cli.vocab.compress import CompressedVocab

DOCUMENTS = zipf_documents(seed=3, count=30, length=50, size=50)
LAYOUT = layout_of(moduli=(601, 607, 2003, 2011), heads=2)


def known(counts: Counts, drawn: Occurrences | None = None) -> list[KnownNgrams]:
    """The n-grams of both samples."""
    orders = counts.layout.orders
    some = [None] * len(orders) if drawn is None else drawn_ngrams(drawn.partial(), orders)
    return [known_ngrams(counts, *pair) for pair in zip(counts.samples, some, strict=True)]


def counted(counts: Counts, own: list[KnownNgrams]) -> Counted:
    """Counts and known n-grams, as the statistics take them."""
    return Counted(
        counts=counts,
        hits=tuple(SampleHits(counts=counts, sample=sample) for sample in counts.samples),
        uses=(None,) * len(own),
        known=tuple(own),
        names=Names(counts.layout),
    )


@pytest.mark.parametrize("most_kept", [0, 2**20])
def test_the_hits_of_a_sample_are_those_of_its_ngrams(
    most_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_module, "_MOST_KEPT", most_kept)
    monkeypatch.setattr(known_module, "_STEP", 37)
    layout = layout_of(moduli=(601, 607, 2003, 2011), heads=2, layers=(1, 4), size=200)
    counts = count(zipf_documents(seed=3, count=20, length=100, size=200), layout, sample_size=300)
    for sample in counts.samples:
        found = SampleHits(counts=counts, sample=sample)
        for entry in layout.layers:
            own = head_hits(counts, entry, sample.tokens)
            assert np.array_equal(found.of(entry, slice(None)), own)
            assert np.array_equal(found.of(entry, slice(30, 90)), own[:, 30:90])
        one = found.least()
        other = least_hits(layout, layout.layers, sample.tokens, hits_of(counts))
        assert np.array_equal(one.least, other.least)
        assert np.array_equal(one.ties, other.ties)
        assert bool(found._kept) == bool(most_kept)


def top_of(counts: Counts, own: list[KnownNgrams], *limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = as_json(top_ngrams.compute(counted(counts, own), *limit))
    return found


def worst_of(counts: Counts, own: list[KnownNgrams], *limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = as_json(module.compute(counted(counts, own), *limit))
    return found


@pytest.mark.parametrize("rows", [211, 20_011])
def test_the_most_frequent_ngrams_of_a_corpus_too_large_for_the_sample(rows: int) -> None:
    """Whatever 200 n-grams the sample holds; in a table so full that no head is clean the counts
    are upper bounds, too high by no more than is said."""
    documents = zipf_documents(seed=5, count=60, length=400, size=300)
    layout = layout_of(moduli=tuple(rows + 2 * k for k in range(16)), heads=8, size=300)
    drawn = Occurrences(layout, 8000)
    counts = count_blocks(blocks_of(documents, 777), layout, sample_size=200, collectors=[drawn])
    own = known(counts, drawn)
    for entry in top_of(counts, own):
        truth = ngrams_of(documents, layout, entry["order"])
        best = sorted(truth.items(), key=lambda item: (-item[1], item[0]))
        assert len(truth) > 2000
        for each in entry["ngrams"]:
            true = truth[tuple(each["tokens"])]
            assert each["count"] == true if each["exact"] else each["count"] >= true
        assert entry["positions"] == 8000
        assert not entry["exact"]
        if rows == 20_011 or entry["order"] == 2:
            names = [tuple(each["tokens"]) for each in entry["ngrams"][:10]]
            within = [ngram for ngram, times in best if times >= best[9][1]]
            assert set(names) <= set(within)
        assert (entry["excess"] > 0) == (rows == 211)
    for some in own:
        truth = ngrams_of(documents, layout, some.order)
        excess = [
            int(bound) - truth[tuple(ngram)]
            for ngram, bound, exact in zip(
                some.tokens.tolist(), some.counts, some.exact, strict=True
            )
            if not exact
        ]
        said = next(
            entry["excess"] for entry in top_of(counts, own) if entry["order"] == some.order
        )
        assert min(excess) >= 0
        assert np.mean(np.array(excess) <= said) > 0.9


def test_a_counter_that_is_full_bounds_nothing() -> None:
    found = LeastHits(least=np.array([7, FULL], dtype=np.uint64), ties=np.array([1, 2]))
    assert at_most(found, 9 * FULL).tolist() == [7, 9 * FULL]


def test_the_most_frequent_ngrams() -> None:
    counts = count(DOCUMENTS, LAYOUT)
    for entry in top_of(counts, known(counts), 15):
        truth = ngrams_of(DOCUMENTS, LAYOUT, entry["order"])
        best = sorted(truth.items(), key=lambda item: (-item[1], item[0]))[:15]
        assert [(tuple(e["tokens"]), e["count"]) for e in entry["ngrams"]] == best
        assert entry["exact"]
        assert all(e["exact"] for e in entry["ngrams"])
        assert (entry["excess"], entry["positions"]) == (0, 0)
        first = entry["ngrams"][0]
        assert first["text"] == " ".join(f"#{token}" for token in first["tokens"])


@pytest.mark.parametrize("look", [2, 50, 2**14])
def test_the_rows_that_frequent_ngrams_share(look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_LOOK", look)
    counts = count(DOCUMENTS, LAYOUT)
    found = worst_of(counts, known(counts), 5)
    layer = LAYOUT.layers[0]
    columns = rows_of(DOCUMENTS, LAYOUT, layer)
    for index, order in enumerate(LAYOUT.orders):
        times = ngrams_of(DOCUMENTS, LAYOUT, order)
        stream = [
            tuple(([0] * (order - 1) + document.tolist())[at : at + order])
            for document in DOCUMENTS
            for at in range(len(document))
        ]
        seconds = []
        for head in range(2):
            column = 2 * index + head
            on_row = defaultdict(set)
            for ngram, row in zip(stream, columns[column] - layer.offsets[column], strict=True):
                on_row[int(row)].add(ngram)
            crowded = [own for own in on_row.values() if len(own) > 1]
            seconds += [sorted(times[n] for n in own)[-2] for own in crowded]
        own = [entry for entry in found if entry["order"] == order]
        assert [e["ngrams"][1]["count"] for e in own] == sorted(seconds, reverse=True)[:5]
        for entry in own:
            assert sum(each["count"] for each in entry["ngrams"]) <= entry["hits"]
            shown = [each["count"] for each in entry["ngrams"]]
            assert shown == sorted(shown, reverse=True)


def test_names_are_the_keys_of_groups(small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=101, heads=2, layers=(1,))
    names = Names(layout, small_vocab)
    sizes = small_vocab.group_sizes()
    shown = [names.token(token) for token in range(small_vocab.size)]
    assert all(text and text.isprintable() for text in shown)
    many = int(np.argmax(sizes))
    assert small_vocab.keys[small_vocab.members(many)[0]].replace(" ", "␣") == shown[many]
    assert names.ngram(np.array([many, 5], dtype=np.int32)) == f"{shown[many]} {shown[5]}"


def test_names_of_raw_ids_and_without_a_vocabulary(small_vocab: CompressedVocab) -> None:
    raw = layout_of(moduli=(11, 13), heads=1, size=small_vocab.vocab_size)
    spelt = [Names(raw, small_vocab).token(token) for token in range(raw.vocab_size)]
    assert any("apple" in text for text in spelt) or len(set(spelt)) > 100
    other = layout_of(moduli=(11, 13), heads=1, size=17)
    assert Names(other, small_vocab).token(3) == "#3"
    assert Names(raw).token(3) == "#3"


def test_one_token_shares_nothing() -> None:
    layout = layout_of(moduli=(11, 13), heads=1)
    counts = count([np.array([3], dtype=np.int32)], layout)
    assert worst_of(counts, known(counts)) == []
    found = top_of(counts, known(counts))
    assert [len(entry["ngrams"]) for entry in found] == [1, 1]
