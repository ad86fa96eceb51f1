"""GGUF files of the table alone, from any source: dialects, dtypes, several parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from formats.test_converting import same_stored, stored, table
from formats.test_gguf import DIALECTS, opened, results
from formats.test_gguf_write import converted
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engram_cli.commands.artifact import find_artifact
from engram_cli.errors import InputError, MismatchError, OutputError
from engram_cli.rows import DTYPES
from engram_cli.rows.source import ROWS
from engram_cli.vocab.compress import CompressedVocab

PLAIN = ("float32", "float16", "bfloat16", "q8_0")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_from_a_table(
    tmp_path: Path, small_vocab: CompressedVocab, dialect: str
) -> None:
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "side-car")
    table(made.path, tmp_path / "t.zarr")
    result = converted(tmp_path / "t.zarr", tmp_path / "n.gguf", dialect=dialect)
    assert (result.verified, result.dialect, result.size) == (
        True, dialect, (tmp_path / "n.gguf").stat().st_size,
    )  # fmt: skip
    source = opened(tmp_path / "n.gguf")
    assert (source.dialect, source.layout.fingerprint) == (dialect, made.layout.fingerprint)
    assert not results(source, "differs")
    assert sorted(os.listdir(tmp_path)) == ["m.gguf", "n.gguf", "t.zarr"]
    table(tmp_path / "n.gguf", tmp_path / "u.zarr")
    same_stored(tmp_path / "u.zarr", made.rows, made.scales)


@pytest.mark.parametrize(("first", "second"), [("upper case", "ds4"), ("side-car", "llama.cpp"),
                                               ("ds4", "side-car")])  # fmt: skip
def test_rows_that_another_dialect_has_as_other_bytes(
    tmp_path: Path, small_vocab: CompressedVocab, first: str, second: str
) -> None:
    """A file of the table alone is written as a new one."""
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, first)
    converted(made.path, tmp_path / "n.gguf", dialect=second)
    source = opened(tmp_path / "n.gguf")
    assert source.dialect == second
    table(tmp_path / "n.gguf", tmp_path / "t.zarr")
    same_stored(tmp_path / "t.zarr", made.rows, made.scales)


@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("dialect", ["llama.cpp", "tensors", "qwen4exp"])
def test_other_dtypes(
    tmp_path: Path, small_vocab: CompressedVocab, dtype: str, dialect: str
) -> None:
    if dialect == "qwen4exp":
        made = checkpoints.qwen_ple(tmp_path / "q")
    else:
        made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "llama.cpp")
    out = tmp_path / "n.gguf"
    result = converted(made.path, out, dialect=dialect, dtype=dtype)
    assert result.verified
    source = opened(out)
    assert (source.dtype, source.layout.fingerprint) == (dtype, made.layout.fingerprint)
    assert not results(source, "differs")
    if dialect != "qwen4exp":
        assert "other tensors of m.gguf are not written" in result.notes[0]
    before, ids = find_artifact(made.path).open(), np.arange(50)
    for layer in source.layers:
        there, old = source.vectors(layer, ids), before.vectors(layer, ids)
        row_type = DTYPES.load(dtype)
        rows = np.empty((50, row_type.width(before.dim)), dtype=row_type.items.physical)
        row_type.encode(old, rows, None)
        assert np.array_equal(stored(source, layer, ROWS)[:50], rows)
        wanted = np.empty_like(old)
        row_type.decode(rows, None, wanted)
        assert np.array_equal(there, wanted)


def test_qwen_keys_come_from_the_config(tmp_path: Path) -> None:
    made = checkpoints.qwen_ple(
        tmp_path / "q", changes={"ple_conv_kernel_size": 4, "image_token_id": 11}
    )
    assert converted(made.path, tmp_path / "n.gguf").notes == ()
    keys = opened(tmp_path / "n.gguf").file.keys
    assert (keys["qwen4exp.ple.conv_kernel"], keys["qwen4exp.ple.image_token_id"]) == (4, 11)
    assert keys["qwen4exp.ple.layers"].tolist() == [1]
    assert keys["qwen4exp.embedding_length_per_layer_input"] == 160
    table(made.path, tmp_path / "t.zarr")
    notes = converted(tmp_path / "t.zarr", tmp_path / "o.gguf").notes
    assert "qwen4exp.ple.conv_kernel is not written" in notes[0]


def test_several_parts(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "side-car")
    first = tmp_path / "n-00001-of-00004.gguf"
    result = converted(made.path, first, dialect="upper case")
    assert result.files == tuple(f"n-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4))
    source = opened(first)
    assert [len(list(source.file.parts)), source.file.keys["split.tensors.count"]] == [4, 4]
    table(first, tmp_path / "t.zarr")
    same_stored(tmp_path / "t.zarr", made.rows, made.scales)
    with pytest.raises(OutputError, match="already exists"):
        converted(made.path, first, dialect="upper case")
    converted(made.path, first, dialect="upper case", force=True)
    with pytest.raises(OutputError, match="the table has 2 tensors"):
        converted(made.path, tmp_path / "o-00001-of-00003.gguf", dialect="ds4")
    with pytest.raises(OutputError, match="names part 2 of 2"):
        converted(made.path, tmp_path / "o-00002-of-00002.gguf", dialect="ds4")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dialect": "qwen4exp"}, "hashes compressed token ids, which the dialect qwen4exp"),
        ({"dialect": "morse"}, "unknown dialect 'morse'"),
        ({"dialect": "ds4"}, "64 values a row, and ds4 has keys for 4 and 256 alone"),
        (
            {"dialect": "side-car", "dtype": "float16"},
            "the dialect side-car does not hold rows of float16",
        ),
        ({"dtype": "int8"}, r"the dialect llama\.cpp does not hold rows of int8"),
    ],
)
def test_what_a_dialect_cannot_hold(
    tmp_path: Path,
    small_vocab: CompressedVocab,
    tokenizer_file: Path,
    options: dict[str, Any],
    match: str,
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    with pytest.raises((InputError, MismatchError), match=match):
        converted(made.path, tmp_path / "n.gguf", **options)
    assert os.listdir(tmp_path) == ["m"]


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.sampled_from([32, 160])),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
        | st.sampled_from([0.0, -0.0, 0.5, 1.5, 63.5, -63.5, 127.0, 65504.0]),
    )
)
def test_q8_0_is_that_of_the_package_gguf(values: np.ndarray) -> None:
    quants = pytest.importorskip("gguf.quants")
    gguf = pytest.importorskip("gguf")
    tops = np.abs(values.reshape(-1, 32)).max(axis=1)
    values[np.repeat((tops > 0) & (tops < 1e-30), 32).reshape(values.shape)] = 0  # 1 / step is inf
    q8_0 = DTYPES.load("q8_0")
    rows = np.empty((len(values), q8_0.width(values.shape[1])), dtype=np.uint8)
    q8_0.encode(np.ascontiguousarray(values), rows, None)
    with np.errstate(all="ignore"):
        theirs = quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(rows, theirs)


def test_q8_0_of_values_that_are_not_finite_or_tiny() -> None:
    values = np.ones((4, 32), dtype=np.float32)
    values[0, 3], values[1, 5] = np.nan, -np.inf
    values[2] = np.float32(1e-42)
    q8_0 = DTYPES.load("q8_0")
    rows = np.empty((4, 34), dtype=np.uint8)
    q8_0.encode(values, rows, None)
    back = np.empty_like(values)
    q8_0.decode(rows, None, back)
    assert np.isnan(back[:2]).all()
    assert not back[2].any()
    assert np.allclose(back[3], 1, rtol=1e-3)


def test_the_package_gguf_reads_a_new_file(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    gguf = pytest.importorskip("gguf")
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "upper case")
    converted(made.path, tmp_path / "n.gguf", dialect="llama.cpp", dtype="q8_0")
    reader = gguf.GGUFReader(tmp_path / "n.gguf")
    assert reader.get_field("deepseek41.engram.max_ngram_size").contents() == 4
    assert [each.name for each in reader.tensors] == [
        "blk.1.engram_embd.weight", "blk.3.engram_embd.weight",
    ]  # fmt: skip
    before = find_artifact(made.path).open()
    for tensor, layer in zip(reader.tensors, (1, 3), strict=True):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
        values = np.empty((before.layout.layer(layer).rows, 256), dtype=np.float32)
        before.read(layer, 0, values)
        theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        assert np.array_equal(tensor.data, theirs)
