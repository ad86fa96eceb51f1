"""The uncompressed twin counts raw ids as if they had been hashed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from stats.truth import blocks_of, count, layout_of, section

from engram_cli import hash_layout
from engram_cli.errors import InputError
from engram_cli.hashing import reference
from engram_cli.stats.counting.count import count_blocks
from engram_cli.stats.statistics.compare import Uncompressed, uncompressed_twin
from engram_cli.vocab.compress import CompressedVocab


def documents_of(vocab: CompressedVocab) -> list[np.ndarray]:
    generator = np.random.default_rng(6)
    known = np.flatnonzero(vocab.lookup >= 0).astype(np.int32)
    return [generator.choice(known, n) for n in (1, 40, 3000, 7)]


@pytest.mark.parametrize(("block", "threads"), [(17, 1), (10_000, 3)])
def test_the_twin_counts_raw_ids(block: int, threads: int, small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=701, heads=2, layers=(1, 4))
    documents = documents_of(small_vocab)
    twin = Uncompressed(layout, 2**14)
    counts = count_blocks(blocks_of(documents, block), layout, collectors=(twin,), threads=threads)
    found, hits = section(twin, counts), twin.partial().hits
    alone = count(documents, twin.layout, sample_size=2**14)
    for layer in twin.layout.layers:
        assert np.array_equal(hits[layer.layer], alone.hits[layer.layer])
        local = [reference.hash_columns(twin.layout, layer, each) for each in documents]
        rows = np.concatenate(local, axis=1) + np.array(layer.offsets)[:, None]
        expected = np.bincount(rows.reshape(-1).astype(np.int64), minlength=layer.rows)
        assert np.array_equal(hits[layer.layer], expected)
    assert [entry["distinct"] for entry in found["orders"]] == [
        len({tuple(([twin.layout.filler_id] * (n - 1) + d.tolist())[i : i + n])
             for d in documents for i in range(len(d))})
        for n in (2, 3)
    ]  # fmt: skip
    assert found["orders"][0]["distinct"] > counts.samples[0].distinct
    assert len(found["columns"]) == 8
    assert found["columns"][0]["rows"] == layout.layers[0].moduli[0]
    assert twin.memory > 4 * sum(entry.rows for entry in layout.layers)


def test_the_twin_stays_a_good_hash_without_overflow(deepseek_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", deepseek_vocab)
    twin = uncompressed_twin(layout)
    assert twin.compressed_size == 129_280
    assert twin.filler_id in deepseek_vocab.members(layout.filler_id)
    for own, entry in zip(twin.layers, layout.layers, strict=True):
        assert own.moduli == entry.moduli
        assert all(m % 2 == 1 and m * 129_279 < 2**63 for m in own.multipliers)
        assert len(set(own.multipliers)) == len(own.multipliers)
        assert math.log2(max(own.multipliers)) > 40


def test_raw_ids_have_no_twin() -> None:
    with pytest.raises(InputError, match="test hashes token ids as they are"):
        uncompressed_twin(layout_of(moduli=(11, 13), heads=1))
