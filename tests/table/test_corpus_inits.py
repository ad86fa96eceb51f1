"""Rows filled from a corpus: what the definition says, however they are made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table.filled import (
    DIM,
    HIDDEN,
    corpus,
    fill,
    fill_spec,
    matrix_vectors,
    random_vectors,
    write_corpus,
)
from table.tables import mapped_layout, raw_layout, stored_rows

from engram_cli.corpus.base import Mark, TokenBlock
from engram_cli.errors import ArtifactError, InputError, MismatchError, TokenIdError
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.build import scratch_folder
from engram_cli.table.convert import conversion
from engram_cli.table.inits.corpus import buckets, filled, kernels, reference, tally
from engram_cli.table.inits.corpus.embeddings import MatrixEmbeddings, RandomEmbeddings
from engram_cli.table.inits.corpus.tokens import TokenFile, TokenWriter, split_starts
from engram_cli.table.store import open_table, read_whole
from engram_cli.table.verify import verify_table
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
            expected = reference.fill_column(
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
        patch.setattr(filled, "_LEAST_MEMORY", 1)
        patch.setattr(tally, "STEP", step)
        patch.setattr(tally, "_LEAST", block)
        patch.setattr(tally, "PARTS_BITS", bits)
        patch.setattr(tally, "_TABLE_BITS", 4 + bits)
        patch.setattr(buckets, "_BUCKET_BITS", bits)
        patch.setattr(buckets, "_BLOCK", step)
        patch.setattr(filled, "_TOGETHER", 1 + bits % 3)
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


def test_memory_decides_how_many_passes_there_are(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    spec = fill_spec(layout, file, random_vectors(layout))
    array = spec.row_arrays[3]
    spans = [array.span(index) for index in range(array.chunks)]
    assert spec.init.passes(3, DIM, spans) == [list(range(7))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filled, "_LEAST_MEMORY", 1)
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
    from engram_cli.hashing.reference import hash_columns

    assert layout.lookup is not None
    rows = hash_columns(layout, layout.layer(3), layout.lookup[raw], starts=starts)
    for column, offset in enumerate(layout.layer(3).offsets):
        hits = np.bincount(rows[column][follows], minlength=53)
        values = table.rows(3, offset + np.arange(53))
        assert not values[hits == 0].any()
        # Weighted by how often each row was hit, the centred rows add up to nothing.
        assert np.abs(hits @ values.astype(np.float64)).max() < 1e-4 * hits.sum() * 0.02


def test_a_projection_is_orthonormal_and_stored(tmp_path: Path) -> None:
    layout = mapped_layout()
    vectors = matrix_vectors(layout)
    file = write_corpus(tmp_path / "tokens", layout)
    table = open_table(fill(tmp_path / "t.zarr", fill_spec(layout, file, vectors)).path)
    import zarr

    stored = np.asarray(zarr.open_group(tmp_path / "t.zarr", mode="r")["projection/3"])
    assert stored.shape == (layout.columns * HIDDEN, DIM)
    for column in range(layout.columns):
        own = stored[column * HIDDEN : (column + 1) * HIDDEN]
        np.testing.assert_array_equal(own, vectors.projection(3, column, DIM))
        np.testing.assert_allclose(own.T @ own, np.eye(DIM), atol=1e-6)
    wide = vectors.projection(3, 0, 40)
    np.testing.assert_allclose(wide @ wide.T, np.eye(HIDDEN), atol=1e-6)
    values, scale = vectors.vectors(3, 1, DIM)
    exact = vectors.read(0, vectors.tokens).astype(np.float64) @ stored[HIDDEN : 2 * HIDDEN]
    np.testing.assert_allclose(values * scale, exact, atol=0.51 * scale + 1e-6)
    assert table.attributes["init"]["parameters"]["embeddings"]["hidden"] == HIDDEN


def test_a_tampered_hidden_size_is_refused(tmp_path: Path) -> None:
    from table.tables import tamper

    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    fill(tmp_path / "t.zarr", fill_spec(layout, file, matrix_vectors(layout)))

    def edit(attributes: dict[str, Any]) -> None:
        attributes["init"]["parameters"]["embeddings"]["hidden"] = 10**9

    tamper(tmp_path / "t.zarr", edit)
    with pytest.raises(ArtifactError, match="hidden"):
        open_table(tmp_path / "t.zarr")


def test_kernels_equal_their_twins() -> None:
    generator = np.random.default_rng(2)
    x = generator.integers(0, 99_092, 5003).astype(np.int32)
    seen = generator.integers(0, 5, 5000).astype(np.uint8)
    multipliers = (2 * generator.integers(0, 2**45, 4) + 1).astype(np.int64)
    for order in (1, 2, 3, 4):
        got, expected = np.empty((2, 5000), dtype=np.int64)
        kernels.mixes(x, seen, 7, multipliers, order, got)
        reference.mixes(x, seen, 7, multipliers, order, expected)
        np.testing.assert_array_equal(got, expected)
    pairs = np.empty((6000, 2), dtype=np.uint64)
    pairs[:, 0] = generator.integers(0, 2**63, 6000)
    pairs[:5, 0] = [0, 1, 2**63 - 1, 16_000_057 * 3, 16_000_057 * 3 - 1]
    pairs[:, 1] = generator.integers(0, 50, 6000).astype(np.uint64) << np.uint64(32) | np.uint64(1)
    flat = pairs.reshape(-1)
    for modulus, salt, fast in ((16_000_057, 0, True), (53, 10007, False), (8209, 0, True)):
        got, expected = np.empty((2, 6000), dtype=np.uint32)
        kernels.rows_of(flat, modulus, salt, fast, got)
        reference.rows_of(flat, modulus, salt, fast, expected)
        np.testing.assert_array_equal(got, expected)
    values = generator.normal(size=(50, 70)).astype(np.float32)
    lines = generator.normal(size=(70, 9)).astype(np.float32)
    got, expected = np.empty((2, 50, 9), dtype=np.float32)
    kernels.project(values, lines, got)
    reference.project(values, lines, expected)
    np.testing.assert_array_equal(got, expected)


@given(kinds=st.integers(1, 300), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pairs_are_united_exactly(kinds: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    pairs = np.empty((1000, 2), dtype=np.uint64)
    pairs[:, 0] = generator.integers(0, kinds, 1000) << generator.integers(0, 50)
    pairs[:, 1] = generator.integers(0, 3, 1000).astype(np.uint64) << np.uint64(32)
    pairs[:, 1] |= generator.integers(1, 2**31, 1000).astype(np.uint64) >> np.uint64(20)
    pairs[:, 1] |= np.uint64(1)
    expected = reference.united(pairs.reshape(-1))
    slots = np.zeros(2 << 11, dtype=np.uint64)
    flat = pairs.reshape(-1)
    count = kernels.unite(flat, slots, 64 - 11, flat)
    assert not slots[1::2].any()
    assert count == len(expected)
    assert reference.united(flat[: 2 * count]) == expected


@pytest.mark.parametrize("width", [1, 6, 16, 33, 64, 80, 112])
@pytest.mark.parametrize("extreme", [False, True])
def test_sums_equal_their_twin(width: int, extreme: bool) -> None:
    """Sums up to the last bit of an int32, and beyond it."""
    generator = np.random.default_rng(4)
    padded = -(-width // 16) * 16
    vectors = np.zeros((1 << 10, padded), dtype=np.int16)
    vectors[:, :width] = generator.integers(-32767, 32768, (1 << 10, width))
    vectors[:3, :width] = 32767
    entries = generator.integers(0, 1 << 10, 4000).astype(np.uint64)
    entries |= generator.integers(1, 12, 4000).astype(np.uint64) << np.uint64(20)
    entries |= generator.integers(0, 16, 4000).astype(np.uint64) << np.uint64(32)
    if extreme:  # 65,536 counts on row 16, one more on row 17, each of the largest value
        hot = np.full(17, 4095, dtype=np.uint64) << np.uint64(20)
        hot[16] = 16 << 20
        first, second = (hot | np.uint64(row << 32) for row in (16, 17))
        second[16] = np.uint64(17 << 32 | 17 << 20)
        entries = np.concatenate([first, entries, second])
    begins, wanted_begins = np.empty((2, 21), dtype=np.int32)
    values, wanted_values = np.empty((2, len(entries)), dtype=np.uint32)
    kernels.sort_bucket(entries, begins, values)
    reference.sort_bucket(entries, wanted_begins, wanted_values)
    np.testing.assert_array_equal(begins, wanted_begins)
    np.testing.assert_array_equal(values, wanted_values)
    sums, wanted = np.ones((2, 19, width), dtype=np.int64)
    hits, counts = np.ones((2, 19), dtype=np.int64)
    kernels.add_rows(values, begins, vectors, sums, hits)
    reference.add_rows(values, begins, vectors, wanted, counts)
    np.testing.assert_array_equal(sums, wanted)
    np.testing.assert_array_equal(hits, counts)
    if extreme:
        assert (hits[16], hits[17]) == (2**16 + 1, 2**16 + 2)
        assert sums[16, 0] == 2**16 * 32767 + 1
    mean = generator.normal(size=width)
    got, expected = np.empty((2, 19, width), dtype=np.float32)
    kernels.fill_rows(values, begins, vectors, mean, 0.25, got)
    reference.fill_rows(values, begins, vectors, mean, 0.25, expected)
    np.testing.assert_array_equal(got, expected)
    assert not got[18].any()
    kernels.finish(wanted, counts, mean, 0.25, got)
    reference.finish(wanted, counts, mean, 0.25, expected)
    np.testing.assert_array_equal(got, expected)


@given(parts=st.integers(0, 6), slots=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pairs_that_repeat_are_combined_and_none_is_lost(parts: int, slots: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    mix = generator.integers(0, 20, 900) << generator.integers(0, 50)
    tokens = generator.integers(-1, 4, 900).astype(np.int32)
    table, out = np.zeros(2 << slots, dtype=np.uint64), np.empty(2 * 901, dtype=np.uint64)
    used = 0
    for begin in (0, 400):
        span = slice(begin, begin + 400 if begin == 0 else 900)
        used = kernels.combine(mix[span], tokens[span], table, 64 - slots, out, used)
    used = kernels.drain(table, out, used)
    assert not table[1::2].any()
    some = tokens >= 0
    plain = np.stack([mix[some], tokens[some].astype(np.int64) << 32 | 1], axis=1).astype(np.uint64)
    expected = reference.united(plain.reshape(-1))
    assert reference.united(out[: 2 * used]) == expected
    sizes = np.zeros(1 << parts, dtype=np.int64)
    kernels.part_sizes(out[: 2 * used], 64 - parts, sizes) if parts else sizes.fill(used)
    assert sizes.sum() == used
    if parts:
        dealt = np.empty(2 * used, dtype=np.uint64)
        kernels.split(out[: 2 * used], 64 - parts, np.cumsum(sizes) - sizes, dealt)
        assert reference.united(dealt) == expected


def test_large_counts_are_dealt_out_in_several_entries() -> None:
    pairs = np.array([[77, 5 << 32 | 4095], [77, 5 << 32 | 4096], [90, 6 << 32 | 9000]], np.uint64)
    where = (53, 0, False, 0, 53, 4)
    sizes = np.zeros(4, dtype=np.int64)
    kernels.bucket_sizes(pairs.reshape(-1), *where, sizes)
    entries = np.empty(int(sizes.sum()), dtype=np.uint64)
    kernels.deal(pairs.reshape(-1), *where, np.cumsum(sizes) - sizes, entries)
    assert sizes.tolist() == [0, 3, 3, 0]
    found = [(int(e) >> 32, int(e) >> 20 & 0xFFF, int(e) & 0xFFFFF) for e in entries]
    assert found[:3] == [(8, 4095, 5), (8, 4095, 5), (8, 1, 5)]
    assert found[3:] == [(5, 4095, 6), (5, 4095, 6), (5, 810, 6)]


def test_hot_rows_do_not_overflow(tmp_path: Path) -> None:
    """One pair 200,000 times: past what an int32 sum may hold."""
    layout = mapped_layout()
    ids = np.full(200_000, 3, dtype=np.int32)
    starts = np.zeros(len(ids), dtype=bool)
    starts[0] = True
    block = TokenBlock(ids=ids, starts=starts, size=1, locate=str)
    file = TokenWriter(tmp_path / "tokens", None).write((b for b in [block]), layout, None)
    vectors = matrix_vectors(layout)
    spec = fill_spec(layout, file, vectors, "token-mean")
    fill(tmp_path / "t.zarr", spec)
    _, column = 3, 0
    values, scale = vectors.vectors(3, column, DIM)
    rows = open_table(tmp_path / "t.zarr").rows(3, np.arange(53))
    hit = rows[np.abs(rows).sum(axis=1) > 0]
    np.testing.assert_allclose(hit[0], values[3] * scale, rtol=1e-6)


def test_a_token_file_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    layout = mapped_layout()
    ids, starts = corpus(40)
    blocks = [
        TokenBlock(ids=ids[b : b + 500], starts=starts[b : b + 500], size=9, locate=str, mark=m)
        for b, m in zip(range(0, 3000, 500), [Mark(items=i) for i in range(6)], strict=True)
    ]
    whole = TokenWriter(tmp_path / "whole", "r").write((b for b in blocks), layout, None)

    def broken() -> Any:
        yield from blocks[:4]
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engram_cli.table.inits.corpus.tokens.KEEP_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            TokenWriter(tmp_path / "cut", "r").write(broken(), layout, "fast")
    with (tmp_path / "cut" / "tokens.u32").open("ab") as file:
        file.write(b"torn")
    writer = TokenWriter(tmp_path / "cut", "r")
    assert (writer.tokens, writer.size, writer.encoder) == (2000, 36, "fast")
    assert writer.mark == Mark(items=3)
    found = writer.write((b for b in blocks[4:]), layout, None)
    assert (found.digest, found.documents, found.largest) == (
        whole.digest,
        whole.documents,
        whole.largest,
    )
    assert TokenWriter(tmp_path / "cut", "r").finished == found
    assert TokenWriter(tmp_path / "cut", "other").finished is None


@pytest.mark.parametrize("key", ["tokens", "mark", "format", "largest", "documents"])
def test_a_damaged_state_is_begun_anew(tmp_path: Path, key: str) -> None:
    layout = mapped_layout()
    write_corpus(tmp_path, layout)
    state = json.loads((tmp_path / "tokens.json").read_text())
    state[key] = [10**12]
    (tmp_path / "tokens.json").write_text(json.dumps(state))
    writer = TokenWriter(tmp_path, "request")
    assert writer.finished is None
    assert writer.tokens == 0


def test_foreign_ids_are_named_with_their_place(tmp_path: Path) -> None:
    block = TokenBlock(
        ids=np.array([3, 400]),
        starts=np.array([True, False]),
        size=1,
        locate=lambda at: f"a.txt, position {at}",
    )
    with pytest.raises(TokenIdError, match=r"a\.txt, position 1 .*400"):
        TokenWriter(tmp_path, None).write((b for b in [block]), mapped_layout(), None)


def test_embeddings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path, layout)
    with pytest.raises(MismatchError, match="embeddings have 5 rows"):
        fill_spec(layout, file, RandomEmbeddings(tokens=5))
    with pytest.raises(InputError, match="std"):
        RandomEmbeddings(tokens=5, std=-1.0)
    nan = np.full((40, 8), np.nan, dtype=np.float32)
    broken = MatrixEmbeddings(
        tokens=40, hidden=8, read=lambda b, e: nan[b:e], name="lm_head.weight", digest=""
    )
    with pytest.raises(ArtifactError, match="lm_head"):
        broken.vectors(0, 0, 4)


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


def test_a_converted_table_keeps_its_projections(tmp_path: Path) -> None:
    layout = mapped_layout()
    file = write_corpus(tmp_path / "tokens", layout)
    source = open_table(
        fill(tmp_path / "a.zarr", fill_spec(layout, file, matrix_vectors(layout))).path
    )
    converted = open_table(fill(tmp_path / "b.zarr", conversion(source, "int8")).path)
    assert verify_table(converted.path).ok
    for name in ("projection/0", "projection/3"):
        first, second = (read_whole(t.path, t.arrays[name]) for t in (source, converted))
        np.testing.assert_array_equal(first, second)
