"""Every figure of stats.json equals one recomputed by brute force on real text.

The corpus is a part of Python's standard library with the real DeepSeek tokenizer. The samples
hold every n-gram here, so that all figures but those of caches and batches are exact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stats import brute_force as truth

from engram_cli.commands.demo.command import library_folder, standard_library
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.statistics.compare import uncompressed_twin
from engram_cli.stats.statistics.locality import LOCALITY
from engram_cli.stats.stats_io import read_stats
from engram_cli.table.planning.batches import batch_share
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab

GEOMETRY = Geometry(heads=3, rows_per_head=(4001, 60_000), layers=(1, 4), orders=(2, 3))
FILES, LARGEST = 24, 40_000


class Counted:
    """A counted corpus: what stats.json says, and the documents it was made of."""

    def __init__(self, here: Path, vocab: CompressedVocab, tokenizer: Path, **options: Any) -> None:
        here.mkdir()
        corpus = here / "corpus"
        corpus.mkdir()
        chosen = [p for p in standard_library(library_folder()) if p.parent == library_folder()]
        chosen = [p for p in chosen if 2000 < p.stat().st_size < LARGEST][:FILES]
        for path in chosen:
            (corpus / path.name).write_bytes(path.read_bytes())
        (corpus / "empty.py").touch()
        write_vocab(vocab, here / "vocab.parquet")
        request: dict[str, Any] = {
            "sources": (corpus,),
            "geometry": GEOMETRY,
            "workspace": Workspace(here),
            "vocab": here / "vocab.parquet",
            "out": here / "stats",
            "tokenizer": tokenizer,
            "errors": "replace",
        }
        hash_stats(HashStatsRequest(**request | options))
        self.document = json.loads((here / "stats" / "stats.json").read_text())
        self.layout: HashLayout = read_stats(here / "stats").layout
        object.__setattr__(self.layout, "lookup", vocab.lookup)
        files = sorted(corpus / path.name for path in chosen)
        self.corpus = truth.read_corpus(files, tokenizer)
        self.orders = {n: truth.Order(self.corpus, self.layout, n) for n in self.layout.orders}

    def entry(self, section: str, **key: int) -> dict[str, Any]:
        """The one entry of a section with these keys."""
        found = [e for e in self.document[section] if all(e[k] == v for k, v in key.items())]
        assert len(found) == 1
        return found[0]


@pytest.fixture(scope="module")
def counted(
    tmp_path_factory: pytest.TempPathFactory,
    deepseek_vocab: CompressedVocab,
    deepseek_tokenizer_file: Path,
) -> Counted:
    here = tmp_path_factory.mktemp("brute") / "here"
    return Counted(
        here,
        deepseek_vocab,
        deepseek_tokenizer_file,
        compare_uncompressed=True,
        group_by="file",
        locality=True,
    )


def test_totals(counted: Counted) -> None:
    document = counted.document
    assert document["tokens"] == counted.corpus.tokens
    assert document["documents"] == len(counted.corpus.documents)
    assert document["corpus"] == {"files": FILES + 1, "empty_files": 1}


def test_orders(counted: Counted) -> None:
    for n, order in counted.orders.items():
        entry = counted.entry("orders", order=n)
        assert entry["windows"] == len(order.occurrences)
        assert entry["exact"]
        assert entry["distinct"] == entry["sampled"] == len(order.ngrams)
        assert entry["distinct_error"] == 0.0


def check_columns(
    document: dict[str, Any], layout: HashLayout, orders: dict[int, truth.Order]
) -> None:
    for layer in layout.layer_ids:
        for n, order in orders.items():
            rows = order.ngram_rows(layer)
            for head, modulus in enumerate(order.moduli(layer)):
                (entry,) = (
                    e
                    for e in document["columns"]
                    if (e["layer"], e["order"], e["head"]) == (layer, n, head)
                )
                true = truth.column(order, rows[head], modulus)
                assert entry["rows"] == modulus
                assert entry["occupied"] == true.occupied
                assert entry["max_hits"] == true.max_hits
                assert entry["full_rows"] == 0
                assert entry["shared"] == pytest.approx(true.shared, abs=1e-12)
                assert entry["shared_occurrences"] == pytest.approx(
                    true.shared_occurrences, abs=1e-12
                )
                distinct = len(order.ngrams)
                assert entry["ideal_occupied"] == pytest.approx(
                    modulus * (1 - (1 - 1 / modulus) ** distinct), rel=1e-9
                )
                assert entry["ideal_shared"] == pytest.approx(
                    1 - (1 - 1 / modulus) ** (distinct - 1), rel=1e-9
                )
                assert entry["shared_error"] == entry["shared_occurrences_error"] == 0.0


def test_columns(counted: Counted) -> None:
    check_columns(counted.document, counted.layout, counted.orders)


def test_uncompressed_columns(counted: Counted) -> None:
    raw_ids = uncompressed_twin(counted.layout)
    orders = {n: truth.Order(counted.corpus, raw_ids, n) for n in raw_ids.orders}
    section = counted.document["uncompressed"]
    for entry in section["orders"]:
        assert entry["distinct"] == len(orders[entry["order"]].ngrams)
    check_columns(section, raw_ids, orders)


def test_rows_where_frequent_ngrams_meet(counted: Counted) -> None:
    for layer in counted.layout.layer_ids:
        for n, order in counted.orders.items():
            rows = order.ngram_rows(layer)
            on_row: dict[tuple[int, int], list[int]] = {}
            for head in range(counted.layout.heads):
                for row, count in zip(rows[head].tolist(), order.counts.tolist(), strict=True):
                    on_row.setdefault((head, row), []).append(count)
            for counts in on_row.values():
                counts.sort(reverse=True)
            seconds = sorted((c[1] for c in on_row.values() if len(c) > 1), reverse=True)
            found = [
                e for e in counted.document["worst_rows"] if (e["layer"], e["order"]) == (layer, n)
            ]
            assert [e["ngrams"][1]["count"] for e in found] == seconds[:10]
            for entry in found:
                counts = on_row[entry["head"], entry["row"]]
                assert entry["hits"] == sum(counts)
                shown = [each["count"] for each in entry["ngrams"]]  # of the frequent ones, up to 4
                assert shown == counts[: len(shown)]


def test_clean_heads_and_purity(counted: Counted) -> None:
    for layer in counted.layout.layer_ids:
        for n, order in counted.orders.items():
            entry = counted.entry("clean_heads", layer=layer, order=n)
            rows = order.ngram_rows(layer)
            columns = [
                truth.column(order, rows[head], modulus)
                for head, modulus in enumerate(order.moduli(layer))
            ]
            clean = np.sum([each.clean for each in columns], axis=0)
            heads = counted.layout.heads
            by_ngram = np.bincount(clean, minlength=heads + 1) / len(clean)
            by_use = np.bincount(clean, weights=order.counts, minlength=heads + 1)
            assert entry["ngrams"] == pytest.approx(by_ngram.tolist(), abs=1e-12)
            assert entry["occurrences"] == pytest.approx(
                (by_use / order.counts.sum()).tolist(), abs=1e-12
            )
            purity = np.mean([each.purity for each in columns])
            assert entry["purity"] == pytest.approx(float(purity), abs=1e-9)


def test_row_hits_and_hot_rows(counted: Counted) -> None:
    for layer in counted.layout.layer_ids:
        for n, order in counted.orders.items():
            rows = order.ngram_rows(layer)
            hits = np.concatenate(
                [
                    truth.column(order, rows[head], modulus).hits
                    for head, modulus in enumerate(order.moduli(layer))
                ]
            )
            entry = counted.entry("row_hits", layer=layer, order=n)
            edges = [*entry["bins"], 2**62]
            expected, _ = np.histogram(hits, bins=edges)
            assert entry["rows"] == expected.tolist()
            hot = next(
                e
                for e in counted.document["locality"]["hot"]
                if (e["layer"], e["order"]) == (layer, n)
            )
            for share, caught in zip(hot["rows_share"], hot["counted"], strict=True):
                low, high = truth.hottest_share(hits, share)
                assert low - 1e-12 <= caught <= high + 1e-12


def test_the_most_frequent_ngrams(counted: Counted) -> None:
    for n, order in counted.orders.items():
        entry = counted.entry("top_ngrams", order=n)
        shown = [(e["count"], tuple(e["tokens"])) for e in entry["ngrams"]]
        assert shown == order.by_frequency[: len(shown)]
        assert len(shown) == 20


def test_sources(counted: Counted) -> None:
    section = counted.document["sources"]
    named = [name for name in section["names"] if name != "(others)"]
    assert len(named) >= FILES - 1
    tokens = dict(zip(section["names"], section["tokens"], strict=True))
    for name in named:
        assert tokens[name] == counted.corpus.of([name]).tokens
    for entry in section["overlap"]:
        orders = {
            name: truth.Order(counted.corpus.of([name]), counted.layout, entry["order"])
            for name in named
        }
        by_use, by_ngram = truth.overlap(orders)
        chosen = [section["names"].index(name) for name in named]
        assert np.allclose(np.array(entry["share"])[np.ix_(chosen, chosen)], by_use, atol=1e-12)
        assert np.allclose(np.array(entry["ngrams"])[np.ix_(chosen, chosen)], by_ngram, atol=1e-12)


def test_growth_ends_with_the_whole(counted: Counted) -> None:
    for n, order in counted.orders.items():
        entry = counted.entry("growth", order=n)
        assert entry["tokens"][-1] == counted.corpus.tokens
        assert entry["distinct"][-1] == pytest.approx(len(order.ngrams), abs=4 * entry["error"][-1])
        for rows in entry["occupied"]:
            first = truth.column(
                order, order.ngram_rows(rows["layer"])[0], order.moduli(rows["layer"])[0]
            )
            assert rows["rows"][-1] == pytest.approx(first.occupied, rel=0.03)


def test_caches(counted: Counted) -> None:
    """All rows of the 2-grams are followed here, so hit rates are exact."""
    order = counted.orders[2]
    for entry in counted.document["locality"]["lru"]:
        if entry["order"] != 2:
            continue
        rows = order.column_rows(entry["layer"])[0]
        for size, rate in list(zip(entry["cache_rows"], entry["hit_rate"], strict=True))[::3]:
            assert rate == pytest.approx(truth.lru_hit_rate(rows, size), abs=1e-12)


def test_batches(counted: Counted) -> None:
    """The distinct rows of a batch are read off the hit rates, within two stated errors."""
    caches, tokens = LOCALITY.read(counted.document["locality"]).lru, counted.corpus.tokens
    for n, order in counted.orders.items():
        sizes = {n: (1e12, 1e12)}  # as they were counted: of so many rows none is met by chance
        columns = [order.column_rows(entry.layer)[0] for entry in caches if entry.order == n]
        for length in (64, 1024, 4096):
            said = batch_share(caches, length, tokens, sizes)
            assert said is not None
            whole = np.concatenate(
                [rows[: len(rows) // length * length].reshape(-1, length) for rows in columns]
            )
            true = np.mean([len(np.unique(batch)) for batch in whole]) / length
            assert abs(said.share - true) <= 2 * said.error
            assert said.error < 0.1
            assert not said.at_most
