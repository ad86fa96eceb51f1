"""The n-grams behind the figures: the right ones, readable, the same every time."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from stats.truth import count, layout_of, ngrams_of, rows_of, zipf_documents

from engram_cli import hash_layout
from engram_cli.stats import ngrams as module
from engram_cli.stats.ngrams import Names, top_ngrams, worst_rows
from engram_cli.vocab.compress import CompressedVocab

DOCUMENTS = zipf_documents(seed=3, count=30, length=50, size=50)
LAYOUT = layout_of(moduli=(601, 607, 2003, 2011), heads=2)


def test_the_most_frequent_ngrams() -> None:
    counts = count(DOCUMENTS, LAYOUT)
    for entry in top_ngrams(counts.samples, Names(LAYOUT), 15):
        truth = ngrams_of(DOCUMENTS, LAYOUT, entry["order"])
        best = sorted(truth.items(), key=lambda item: (-item[1], item[0]))[:15]
        assert [(tuple(e["tokens"]), e["count"]) for e in entry["ngrams"]] == best
        assert entry["exact"]
        first = entry["ngrams"][0]
        assert first["text"] == " ".join(f"#{token}" for token in first["tokens"])


@pytest.mark.parametrize("look", [2, 50, 2**14])
def test_the_rows_that_frequent_ngrams_share(look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_LOOK", look)
    counts = count(DOCUMENTS, LAYOUT)
    found = worst_rows(counts, Names(LAYOUT), limit=5)
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
    assert worst_rows(counts, Names(layout)) == []
    assert [len(entry["ngrams"]) for entry in top_ngrams(counts.samples, Names(layout))] == [1, 1]
