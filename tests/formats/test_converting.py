"""convert --to: rows copied as they are stored, between tables, checkpoints and row264."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from formats.test_gguf import DIALECTS
from table.building import fail_after
from table.tables import build

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.convert.command import ConvertResult, convert_table
from engram_cli.commands.convert.to import WriteResult, convert
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.errors import ArtifactError, EngramError, InputError, MismatchError, OutputError
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows import DTYPES
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import CompressedVocab


def written(source: Path, to: str, out: Path, **options: Any) -> WriteResult:
    result = convert(ConvertRequest(source=source, to=to, out=out, **options))
    assert isinstance(result, WriteResult)
    return result


def table(source: Path, out: Path, **options: Any) -> ConvertResult:
    return convert_table(ConvertRequest(source=source, to="table", out=out, **options))


def stored(source: RowSource, layer: int, part: str) -> np.ndarray:
    return source.lines(layer, part, 0, source.layout.layer(layer).rows)


def same_stored(path: Path, rows: dict[int, Any], scales: dict[int, Any]) -> None:
    source = find_artifact(path).open()
    for layer in rows:
        assert np.array_equal(stored(source, layer, ROWS), rows[layer])
        if scales:
            assert np.array_equal(stored(source, layer, SCALES), scales[layer])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_gguf_to_a_table_keeps_items_and_scales(
    tmp_path: Path, small_vocab: CompressedVocab, dialect: str
) -> None:
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, dialect)
    result = table(made.path, tmp_path / "t.zarr")
    assert (result.plan.dtype, result.copied, result.differences) == ("fp8_e8m0", True, ())
    same_stored(tmp_path / "t.zarr", made.rows, made.scales)
    assert open_table(tmp_path / "t.zarr").layout.fingerprint == made.layout.fingerprint
    assert verify(VerifyRequest(path=tmp_path / "t.zarr", folder=tmp_path)).ok


def test_deepseek_and_back(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    """Release -> table -> row264 -> the release's files again, byte for byte."""
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    table(made.path, tmp_path / "t.zarr")
    same_stored(tmp_path / "t.zarr", made.rows, made.scales)
    packed = written(tmp_path / "t.zarr", "row264", tmp_path / "r")
    assert packed.verified
    same_stored(tmp_path / "r", made.rows, made.scales)
    raw = np.fromfile(tmp_path / "r" / "layer-1.row264", np.uint8).reshape(len(made.rows[1]), -1)
    assert np.array_equal(raw, np.concatenate([made.rows[1], made.scales[1]], axis=1))
    assert verify(VerifyRequest(path=tmp_path / "r", folder=tmp_path)).ok
    result = written(tmp_path / "r", "deepseek-v4.1", tmp_path / "p", patch=made.path)
    assert result.verified
    for name in result.files[:-1]:
        assert (tmp_path / "p" / name).read_bytes() == (made.path / name).read_bytes()
    assert set(os.listdir(tmp_path / "p")) == set(result.files)


def test_another_table_drops_into_a_release(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file, dim=256)
    other = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "side-car")
    result = written(other.path, "deepseek-v4.1", tmp_path / "p", patch=made.path)
    assert "put the files of p over those of m" in result.notes[0]
    for name in result.files:
        os.replace(tmp_path / "p" / name, made.path / name)
    same_stored(made.path, other.rows, other.scales)
    source = find_artifact(made.path).open()
    assert not [check for check in source.checks if check.result == "differs"]


def test_what_does_not_fit_into_a_release_is_refused(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    other = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4").path
    out = tmp_path / "p"
    with pytest.raises(MismatchError, match="dim 256 instead of 64"):
        written(other, "deepseek-v4.1", out, patch=made.path)
    with pytest.raises(InputError, match=r"is no DeepSeek-V4\.1 checkpoint"):
        written(other, "deepseek-v4.1", out, patch=other)
    build(tmp_path / "t.zarr", dim=64)
    with pytest.raises(InputError, match="rows of float32, which row264 does not hold"):
        written(tmp_path / "t.zarr", "row264", out)
    with pytest.raises(InputError, match="longcat is read, not written"):
        written(tmp_path / "t.zarr", "longcat", out)
    with pytest.raises(MismatchError, match="looks rows up by: fold, multipliers"):
        written(tmp_path / "t.zarr", "gguf", out)
    assert not out.exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_qwen_to_a_table(tmp_path: Path, dtype: str) -> None:
    made = checkpoints.qwen_ple(tmp_path / "q", dtype=dtype)
    result = table(made.path, tmp_path / "t.zarr", chunk_rows=40)
    assert result.plan.dtype == ("bfloat16" if dtype == "bfloat16" else "fp8")
    after = open_table(tmp_path / "t.zarr")
    assert np.array_equal(stored(after, 2, ROWS), made.rows[2])
    if dtype != "bfloat16":
        assert after.lines(2, SCALES, 0, 1)[0] == np.float32(2.0**-12 * 1.5)


def test_longcat_to_a_table(tmp_path: Path) -> None:
    made = checkpoints.longcat(tmp_path / "l")
    table(made.path, tmp_path / "t.zarr")
    same_stored(tmp_path / "t.zarr", made.rows, {})


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_blocks_are_never_decoded_silently(tmp_path: Path, kind: str) -> None:
    layout = hash_layout("qwen-ple", vocab_size=40, eos_id=7, rows_per_head=97, layers=(2,))
    entry = layout.layers[0]
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
    width = DTYPES.load(kind).width(160)
    rows = np.random.default_rng(0).integers(0, 60, (entry.rows, width), dtype=np.uint8)
    tensors = {"per_layer_token_embd.weight": (kind, rows)}
    path = checkpoints.gguf(tmp_path / "q.gguf", keys, tensors)
    with pytest.raises(InputError, match="does not hold bit for bit"):
        table(path, tmp_path / "t.zarr")
    result = table(path, tmp_path / "t.zarr", dtype="float32")
    assert all(each.worst_row == -1 for each in result.differences)


OWN = ("float32", "float16", "bfloat16", "fp8_e8m0", "fp8", "int8", "int8_b32", "int4", "int4_b32")


@pytest.mark.parametrize("dtype", OWN)
def test_a_table_is_copied(tmp_path: Path, dtype: str) -> None:
    build(tmp_path / "t.zarr", dim=32, tokens=3)
    first = tmp_path / "t.zarr"
    if dtype != "float32":
        convert_table(ConvertRequest(source=first, dtype=dtype, out=tmp_path / "u.zarr"))
        first = tmp_path / "u.zarr"
    before = open_table(first)
    result = table(first, tmp_path / "v.zarr", chunk_rows=31, threads=2)
    assert (result.copied, result.plan.dtype) == (True, dtype)
    after = open_table(tmp_path / "v.zarr")
    for layer in before.layers:
        assert np.array_equal(stored(after, layer, ROWS), stored(before, layer, ROWS))
        assert np.array_equal(before.hits(layer), after.hits(layer))
        if DTYPES.load(dtype).scaling is not None:
            assert np.array_equal(stored(after, layer, SCALES), stored(before, layer, SCALES))
    again = table(first, tmp_path / "v.zarr", chunk_rows=31)
    assert (again.digest, again.copied) == (result.digest, True)
    with pytest.raises(InputError, match=f"is {dtype} already"):
        table(first, tmp_path / "w.zarr", dtype=dtype)


@pytest.mark.parametrize("dtype", [dtype for dtype in OWN if dtype != "fp8"])
def test_copied_chunks_are_those_that_encoding_gave(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engram_cli.table import convert as module
    from engram_cli.table.build import build_store

    build(tmp_path / "t.zarr", dim=32)
    first = tmp_path / "t.zarr"
    if dtype != "float32":
        convert_table(ConvertRequest(source=first, dtype=dtype, out=tmp_path / "u.zarr"))
        first = tmp_path / "u.zarr"
    copied = table(first, tmp_path / "v.zarr").digest
    monkeypatch.setattr(module.RowsOfSource, "stored", lambda _: None)
    monkeypatch.setattr(module.RowsOfSource, "layer_scale", lambda *_: None)
    spec = module.conversion(open_table(first), dtype, copy=True)
    assert build_store(spec, tmp_path / "w.zarr").digest == copied


def test_layers_and_another_dtype(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr", dim=64)
    first = open_table(tmp_path / "t.zarr")
    layer, rows = first.layers[-1], first.layout.layer(first.layers[-1]).rows
    result = written(
        tmp_path / "t.zarr", "row264", tmp_path / "r", dtype="fp8_e8m0", layers=(layer,)
    )
    assert result.verified
    source = find_artifact(tmp_path / "r").open()
    assert source.layers == (layer,)
    convert_table(
        ConvertRequest(source=tmp_path / "t.zarr", dtype="fp8_e8m0", out=tmp_path / "u.zarr")
    )
    quantised = open_table(tmp_path / "u.zarr")
    for part in (ROWS, SCALES):
        assert np.array_equal(stored(source, layer, part), stored(quantised, layer, part))
    only = table(tmp_path / "t.zarr", tmp_path / "v.zarr", layers=(layer,)).copied
    after = open_table(tmp_path / "v.zarr")
    assert (only, after.layers) == (True, (layer,))
    assert np.array_equal(after.lines(layer, ROWS, 0, rows), first.lines(layer, ROWS, 0, rows))
    with pytest.raises(InputError, match="has no rows of layer 99"):
        table(tmp_path / "t.zarr", tmp_path / "w.zarr", layers=(99,))
    for to in ("table", "row264"):
        request = ConvertRequest(
            source=tmp_path / "t.zarr", to=to, out=tmp_path / "w", rows=(0, 9), dtype="fp8_e8m0"
        )
        with pytest.raises(InputError, match="--rows leaves out rows that tokens look up"):
            convert(request)


@pytest.mark.parametrize("to", ["table", "row264", "gguf"])
def test_no_new_name_and_no_dtype_of_tables(tmp_path: Path, to: str) -> None:
    """Q8_0 is written to GGUF alone; `.` names nothing new."""
    build(tmp_path / "t.zarr", dim=32)
    if to != "gguf":
        with pytest.raises(InputError, match="does not hold rows of q8_0"):
            convert(
                ConvertRequest(source=tmp_path / "t.zarr", to=to, out=tmp_path / "x", dtype="q8_0")
            )
    with pytest.raises(OutputError, match="names no new file or folder"):
        convert(ConvertRequest(source=tmp_path / "t.zarr", to=to, out=Path(), dtype="fp8_e8m0"))


def test_damage_while_copying_is_found(
    tmp_path: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison reads what was written."""
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    table(made.path, tmp_path / "t.zarr")
    chunk = tmp_path / "t.zarr" / "3" / "c.0.0"
    raw = bytearray(chunk.read_bytes())
    raw[256 * 77 + 5] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(ArtifactError, match="row 77 of layer 3 is not what was copied"):
        table(made.path, tmp_path / "t.zarr")
    result = table(made.path, tmp_path / "t.zarr", verify=False)
    assert not result.copied


def test_a_source_at_odds_with_itself_is_not_copied(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    changes = {"engram_compressed_vocab_size": 17}
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file, changes=changes)
    with pytest.raises(ArtifactError, match="compressed size is 17"):
        table(made.path, tmp_path / "t.zarr")
    bare = checkpoints.deepseek_v41(tmp_path / "n", small_vocab, None)
    with pytest.raises(InputError, match="has no token map"):
        table(bare.path, tmp_path / "t.zarr")
    table(bare.path, tmp_path / "t.zarr", tokenizer=tokenizer_file)


def test_another_source_does_not_resume(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    """Checkpoints name no digest: a sample of their rows tells them apart."""
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    digest = table(made.path, tmp_path / "t.zarr").digest
    raw = bytearray(made.path.read_bytes())
    raw[-264:] = bytes(264)
    made.path.write_bytes(raw)
    with pytest.raises(OutputError, match="already exists"):
        table(made.path, tmp_path / "t.zarr")
    assert table(made.path, tmp_path / "t.zarr", force=True).digest != digest


def test_row264_is_checked_and_replaced_only_if_it_is_ours(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "upper case")
    out = tmp_path / "r"
    planned = written(made.path, "row264", out, dry_run=True)
    assert not planned.written
    assert not out.exists()
    assert written(made.path, "row264", out).size == planned.size
    with pytest.raises(OutputError, match="already exists"):
        written(made.path, "row264", out)
    written(made.path, "row264", out, force=True)
    file = out / "layer-3.row264"
    raw = bytearray(file.read_bytes())
    raw[9] ^= 1
    file.write_bytes(raw)
    assert verify(VerifyRequest(path=out, folder=tmp_path)).problems == (
        "layer-3.row264: its bytes have changed since it was written",
    )
    file.write_bytes(raw[:-1])
    with pytest.raises(ArtifactError, match=r"layer-3\.row264 has"):
        find_artifact(out).open()
    about = json.loads((out / "row264.json").read_text())
    for change in ({"dim": 7}, {"files": {"../x": [1, ""]}}, {"version": 2}, {"layout": None}):
        (out / "row264.json").write_text(json.dumps(about | change))
        with pytest.raises(EngramError):
            find_artifact(out).open()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "no --dtype is given"),
        ({"dtype": "int8", "out": None}, "no --out is given"),
        ({"dtype": "int8", "dialect": "ds4"}, "need --to"),
        ({"dtype": "int8", "layers": (1,)}, "need --to"),
        ({"to": "gguf", "patch": Path("m")}, "--patch is for"),
        ({"to": "table", "dialect": "ds4"}, "--dialect is for"),
        ({"to": "table", "check": True}, "--check is for"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        ConvertRequest(**{"source": Path("a"), "out": Path("b"), **options})


def test_copying_is_resumed(
    tmp_path: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    whole = table(made.path, tmp_path / "whole.zarr", chunk_rows=900, threads=1)
    with monkeypatch.context() as patch:
        fail_after(patch, 9, errno.ENOSPC)
        with pytest.raises(OutputError, match="No space left"):
            table(made.path, tmp_path / "t.zarr", chunk_rows=900, threads=1)
    resumed = table(made.path, tmp_path / "t.zarr", chunk_rows=900, threads=1)
    assert 0 < resumed.resumed_chunks < 2 * 13
    assert resumed.digest == whole.digest
