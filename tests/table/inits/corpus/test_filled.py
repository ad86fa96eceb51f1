"""Rows filled from a corpus: what the definition says, however they are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table import plain
from table.filled import DIM, fill, fill_spec, matrix_vectors, random_vectors, write_corpus
from table.tables import mapped_layout, raw_layout, stored_rows

from engram_cli.corpus.base import TokenBlock
from engram_cli.errors import InputError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.reference import hash_columns
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.inits.corpus import buckets, filled, memory_plan, pairs
from engram_cli.table.inits.corpus.buckets import BufferPool
from engram_cli.table.inits.corpus.tokens import TokenFile, TokenWriter, piece_of, split_starts
from engram_cli.table.places import scratch_folder
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import CompressedVocab

LAYOUTS = {"mapped": mapped_layout, "raw": raw_layout}

VECTORS = {"random": random_vectors, "matrix": matrix_vectors}


def deep_layout(vocab: CompressedVocab) -> HashLayout:
    """Orders 2 to 4, of which the longest spans what a short document has."""
    return hash_layout(
        "deepseek-v4.1", vocab, rows_per_head=(40, 9000, 50), heads=2, layers=(1,), pad_id=2
    )


@pytest.mark.parametrize("name", ["next-token", "token-mean"])
@pytest.mark.parametrize("vectors", list(VECTORS))
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("joined", [False, True])
def test_every_row_is_what_the_definition_says(
    tmp_path: Path, layout: str, vectors: str, name: str, joined: bool
) -> None:
    made = LAYOUTS[layout]()
    embeddings = VECTORS[vectors](made)
    file = write_corpus(tmp_path / "tokens", made)
    report = fill(
        tmp_path / "t.zarr", fill_spec(made, file, embeddings, name, joined=joined), threads=2
    )
    assert verify_table(report.path).ok
    _equals_definition(report.path, file, embeddings, name, joined)


def test_four_grams_and_reciprocal_moduli_too(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    layout = deep_layout(small_vocab)
    file = write_corpus(tmp_path / "tokens", layout)
    embeddings = random_vectors(layout)
    for name in ("next-token", "token-mean"):
        out = tmp_path / f"{name}.zarr"
        fill(out, fill_spec(layout, file, embeddings, name, chunk_rows=None))
        _equals_definition(out, file, embeddings, name, False)


def _equals_definition(
    path: Path, file: TokenFile, embeddings: Any, name: str, joined: bool
) -> None:
    table = open_table(path)
    layout = table.layout
    raw, starts = split_starts(np.array(file.map()))
    if joined:
        starts[:] = False
    filled_rows = 0
    for entry in layout.layers:
        for column, (offset, modulus) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
            values, scale = embeddings.vectors(entry.layer, column, DIM)
            follow = name == "next-token"
            expected = plain.fill_column(
                layout, entry, column, raw, starts, values, scale, follow=follow
            )
            got = table.rows(entry.layer, offset + np.arange(modulus))
            np.testing.assert_array_equal(got, expected)
            filled_rows += int(expected.any(axis=1).sum())
        padding = np.arange(sum(entry.moduli), entry.rows)
        assert not table.rows(entry.layer, padding).any()
    assert filled_rows > 50


@given(
    chunk_rows=st.integers(20, 250),
    threads=st.integers(1, 3),
    room=st.integers(1, 60_000),
    step=st.integers(30, 400),
    block=st.integers(300, 4000),
    bits=st.integers(1, 7),
)
@settings(max_examples=8, deadline=None)
def test_passes_threads_and_blocks_change_no_byte(
    tmp_path_factory: pytest.TempPathFactory,
    chunk_rows: int,
    threads: int,
    room: int,
    step: int,
    block: int,
    bits: int,
) -> None:
    folder = tmp_path_factory.mktemp("t")
    layout = mapped_layout()
    file = write_corpus(folder / "tokens", layout, block=step)
    spec = fill_spec(layout, file, matrix_vectors(layout), "token-mean")
    whole = open_table(fill(folder / "whole.zarr", spec).path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filled, "LEAST_MEMORY", 1)
        patch.setattr(pairs, "STEP", step)
        patch.setattr(pairs, "_LEAST", block)
        patch.setattr(pairs, "PARTS_BITS", bits)
        patch.setattr(pairs, "_TABLE_BITS", 4 + bits)
        patch.setattr(buckets, "_BUCKET_BITS", bits)
        patch.setattr(buckets, "_BLOCK", step)
        patch.setattr(memory_plan, "_TOGETHER", 1 + bits % 3)
        init = replace(spec.init, memory=room, threads=threads)
        cut = fill(
            folder / "cut.zarr", replace(spec, init=init, chunk_rows=chunk_rows), threads=threads
        )
    for layer in layout.layer_ids:
        assert (
            stored_rows(open_table(cut.path), layer)[: 212 * DIM * 4]
            == stored_rows(whole, layer)[: 212 * DIM * 4]
        )
    assert not scratch_folder(cut.path).exists()


def test_a_chunk_that_memory_cannot_hold_is_filled_in_parts(tmp_path: Path) -> None:
    """Never more pairs are held than memory allows, though one chunk has all rows of a layer."""
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    spec = fill_spec(layout, file, random_vectors(layout), "next-token", chunk_rows=None)
    whole = open_table(fill(tmp_path / "whole.zarr", spec).path)
    held: dict[int, int] = {}
    most = 0

    class Counting(BufferPool):
        def take(self, size: int) -> Any:
            nonlocal most
            buffer = super().take(size)
            held[id(buffer)] = 8 * size
            most = max(most, sum(held.values()))
            return buffer

        def give(self, buffer: Any) -> None:
            del held[id(buffer)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filled, "LEAST_MEMORY", 1)
        memory = 12_000
        init = replace(spec.init, memory=memory, kept=filled.Kept(buffer_pool=Counting()))
        alone = init.memory_plan(DIM).entry_bytes(layout.layers[0], 0, (0, 53))
        assert alone > memory  # of a column
        cut = open_table(fill(tmp_path / "cut.zarr", replace(spec, init=init)).path)
    assert 0 < most < memory
    for layer in layout.layer_ids:
        assert stored_rows(cut, layer) == stored_rows(whole, layer)


def test_memory_decides_how_many_passes_there_are(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    spec = fill_spec(layout, file, random_vectors(layout))
    array = spec.row_arrays[3]
    spans = [array.span(index) for index in range(array.chunks)]
    assert spec.init.passes(3, DIM, spans) == [list(range(7))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filled, "LEAST_MEMORY", 1)
        tight = replace(spec.init, memory=1)
        assert tight.passes(3, DIM, spans) == [[index] for index in range(7)]
        # 32 rows have 14.5 kB of pairs at most, a column 0.5 kB of vectors; a quarter is kept.
        middle = replace(spec.init, memory=4 * 31_000 // 3)
        assert middle.passes(3, DIM, spans) == [[0, 1], [2, 3], [4, 5], [6]]
    with pytest.raises(InputError, match="bytes of memory"):
        replace(spec.init, memory=1000)


def test_rows_nothing_fell_on_are_zero_and_means_are_centred(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    vectors = random_vectors(layout)
    table = open_table(fill(tmp_path / "t.zarr", fill_spec(layout, file, vectors)).path)
    raw, starts = split_starts(np.array(file.map()))
    follows = np.append(~starts[1:], False)
    assert layout.lookup is not None
    rows = hash_columns(layout, layout.layer(3), layout.lookup[raw], starts=starts)
    for column, offset in enumerate(layout.layer(3).offsets):
        hits = np.bincount(rows[column][follows], minlength=53)
        values = table.rows(3, offset + np.arange(53))
        assert not values[hits == 0].any()
        # Weighted by how often each row was hit, the centred rows add up to nothing.
        assert np.abs(hits @ values.astype(np.float64)).max() < 1e-4 * hits.sum() * 0.02


def test_hot_rows_do_not_overflow(tmp_path: Path) -> None:
    """One pair 200,000 times: past what an int32 sum may hold."""
    layout = mapped_layout()
    ids = np.full(200_000, 3, dtype=np.int32)
    starts = np.zeros(len(ids), dtype=bool)
    starts[0] = True
    block = TokenBlock(ids=ids, starts=starts, size=1, locate=str)
    file = TokenWriter(tmp_path / "tokens", None).write(
        (piece_of(b, layout) for b in [block]), None
    )
    vectors = matrix_vectors(layout)
    spec = fill_spec(layout, file, vectors, "token-mean")
    fill(tmp_path / "t.zarr", spec)
    values, scale = vectors.vectors(3, 0, DIM)
    rows = open_table(tmp_path / "t.zarr").rows(3, np.arange(53))
    hit = rows[np.abs(rows).sum(axis=1) > 0]
    np.testing.assert_allclose(hit[0], values[3] * scale, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8_e8m0", "fp8", "int8", "int4_b32"])
def test_every_kind_of_codec_stores_filled_rows(tmp_path: Path, dtype: str) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    vectors = random_vectors(layout)
    exact = open_table(fill(tmp_path / "a.zarr", fill_spec(layout, file, vectors)).path)
    spec = fill_spec(layout, file, vectors, dtype=dtype)
    stored = open_table(fill(tmp_path / "b.zarr", spec).path)
    rows = np.arange(212)
    error = np.abs(exact.rows(3, rows) - stored.rows(3, rows)).max()
    assert error < 0.1 * np.abs(exact.rows(3, rows)).max()
