"""GGUF files with Engram tables: every dialect, files that lack constants, and headers that lie."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from formats.checkpoints import Written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_cli.commands.artifact import find_artifact
from engram_cli.errors import EngramError
from engram_cli.formats.gguf import FORMAT, GgufRows
from engram_cli.rows import DTYPES
from engram_cli.rows.gguf_file import Strings, read_gguf
from engram_cli.vocab.compress import CompressedVocab

DIALECTS = (
    "llama.cpp", "ds4", "upper case", "upper case, NUM_EMBEDDINGS", "tensors", "side-car"
)  # fmt: skip


def opened(path: Path, tokenizer: Path | None = None) -> GgufRows:
    found = find_artifact(path)
    assert found.kind == "gguf"
    source = found.open(tokenizer=tokenizer)
    assert isinstance(source, GgufRows)
    return source


def results(source: GgufRows, result: str) -> dict[str, tuple[str, str]]:
    return {c.name: (c.found, c.expected) for c in source.checks if c.result == result}


def same_vectors(source: GgufRows, written: Written) -> None:
    for layer, rows in written.rows.items():
        values = np.empty(rows.shape, dtype=np.float32)
        DTYPES.load("fp8_e8m0").decode(rows, written.scales[layer], values)
        ids = np.random.default_rng(1).integers(0, len(rows), 40)
        assert np.array_equal(source.vectors(layer, ids), values[ids])
        found = np.empty((7, 256), dtype=np.float32)
        source.read(layer, 5, found)
        assert np.array_equal(found, values[5:12])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, dialect: str
) -> None:
    written = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, dialect)
    source = opened(written.path, tokenizer_file)
    assert source.dialect == dialect
    assert not results(source, "differs")
    assert source.layout.fingerprint == written.layout.fingerprint
    assert source.layers == (1, 3)
    same_vectors(source, written)
    assert opened(written.path).layout.fingerprint == written.layout.fingerprint


def test_constants_that_are_missing_are_named_and_follow(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    lacks = ("multipliers", "primes", "offsets", "token_map", "pad_id")
    ends = tuple(f".engram.{name}" for name in lacks)
    written = checkpoints.deepseek_gguf(
        tmp_path / "m.gguf", small_vocab, "llama.cpp", leave_out=ends
    )
    source = opened(written.path, tokenizer_file)
    found, _ = results(source, "differs")["constants in the file"]
    assert found.startswith("4 of 9; missing: ")
    assert all(name in found for name in ends)
    assert source.layout.fingerprint == written.layout.fingerprint
    same_vectors(source, written)
    with pytest.raises(EngramError, match="neither a token map nor the compressed size"):
        opened(written.path)


def test_another_models_tokenizer_differs(
    tmp_path: Path, small_vocab: CompressedVocab, deepseek_tokenizer_file: Path
) -> None:
    written = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    assert "token map" in results(opened(written.path, deepseek_tokenizer_file), "differs")


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "float16", "bfloat16", "float32"])
def test_qwen4exp(tmp_path: Path, kind: str) -> None:
    from engram_cli.hashing.schemes import hash_layout

    layout = hash_layout("qwen-ple", vocab_size=40, eos_id=7, rows_per_head=97, layers=(2,))
    entry, random = layout.layers[0], np.random.default_rng(2)
    keys: dict[str, Any] = {
        "general.architecture": "qwen4exp",
        "qwen4exp.ple.layers": np.array([1], dtype="<i4"),
        "qwen4exp.ple.ngram_size": 3,
        "qwen4exp.ple.heads_per_ngram": 8,
        "qwen4exp.ple.eos_token_id": 7,
        "qwen4exp.ple.layer_multipliers": np.array(entry.multipliers, dtype="<u8"),
        "qwen4exp.ple.head_vocab_sizes": np.array(entry.moduli, dtype="<u8"),
        "qwen4exp.ple.head_offsets": np.array(entry.offsets, dtype="<u8"),
        "tokenizer.ggml.tokens": ["x"] * 40,
    }
    row_type = DTYPES.load(kind)
    if row_type.items.block is None:
        plain = random.standard_normal((entry.rows, 160)).astype(np.float32)
        rows = plain.astype(kind) if kind != "bfloat16" else checkpoints.bfloat16(plain)
    else:
        rows = random.integers(0, 60, (entry.rows, row_type.width(160)), dtype=np.uint8)
    tensors = {"per_layer_token_embd.weight": (kind, rows)}
    source = opened(checkpoints.gguf(tmp_path / "q.gguf", keys, tensors))
    assert not results(source, "differs")
    assert source.layout.fingerprint == layout.fingerprint
    values = np.empty((entry.rows, 160), dtype=np.float32)
    row_type.decode(rows, None, values)
    assert np.array_equal(source.vectors(2, [0, 5, entry.rows - 1]), values[[0, 5, -1]])


def test_blocks_are_ggmls_numbers() -> None:
    """Against the dequantiser of the package gguf, bit for bit, on random bytes."""
    gguf = pytest.importorskip("gguf")
    random = np.random.default_rng(5)
    for name, number in (("q8_0", 8), ("q4_0", 2), ("q4_k", 12), ("q6_k", 14)):
        row_type = DTYPES.load(name)
        stored = random.integers(0, 120, (9, row_type.width(512)), dtype=np.uint8)
        values = np.empty((9, 512), dtype=np.float32)
        row_type.decode(stored, None, values)
        kind = gguf.GGMLQuantizationType(number)
        theirs = gguf.quants.dequantize(stored, kind).reshape(9, 512)
        assert np.array_equal(values, theirs)


def test_their_writer(tmp_path: Path) -> None:
    """A file of the package gguf: keys, strings and tensors are where it put them."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "deepseek41")
    writer.add_array("deepseek41.engram.layer_ids", [1])
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_float32("x.scale", 0.5)
    rows = np.arange(640, dtype=np.float16).reshape(10, 64)
    writer.add_tensor("blk.1.engram_embd.weight", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "w.gguf")
    assert file.keys["tokenizer.ggml.tokens"] == Strings(3)
    assert file.keys["x.scale"] == 0.5
    tensor = file.tensors["blk.1.engram_embd.weight"]
    raw = tensor.file.read_bytes()[tensor.begin :][: tensor.nbytes]
    assert tensor.shape == (10, 64)
    assert np.array_equal(np.frombuffer(raw, np.float16).reshape(10, 64), rows)


@pytest.mark.parametrize("kept", [5, 0])
def test_scales_of_another_height_are_not_read(
    tmp_path: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    write = checkpoints.gguf

    def cut(path: Path, keys: Any, tensors: Any) -> Path:
        parts = {n: (k, v[:kept] if n.endswith("scale") else v) for n, (k, v) in tensors.items()}
        return write(path, keys, parts)

    monkeypatch.setattr(checkpoints, "gguf", cut)
    written = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "upper case")
    source = opened(written.path)
    assert source.layers == ()
    assert {"layer 1: scales", "layer 3: scales"} <= set(results(source, "differs"))


def test_short_files_and_missing_parts(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    checkpoints.deepseek_gguf(path, small_vocab, "ds4")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)
    differs = results(opened(path), "differs")
    assert differs["missing parts"][0] == "m-00002-of-00002.gguf"
    assert differs["short parts"][0] == path.name


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_our_own_errors(
    tmp_path: Path, small_vocab: CompressedVocab, data: st.DataObject
) -> None:
    path = tmp_path / "m.gguf"
    checkpoints.deepseek_gguf(path, small_vocab, data.draw(st.sampled_from(DIALECTS)))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(raw), 4000) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path.write_bytes(raw)
    with contextlib.suppress(EngramError):
        source = FORMAT.open(path, None)
        for layer in source.layers:
            source.vectors(layer, [0, 1])


def test_the_tokenizer_in_the_folder_serves_a_file_without_a_map(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    ends = (".engram.token_map", ".engram.multipliers")
    written = checkpoints.deepseek_gguf(
        tmp_path / "m.gguf", small_vocab, "llama.cpp", leave_out=ends
    )
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    assert opened(written.path).layout.fingerprint == written.layout.fingerprint
