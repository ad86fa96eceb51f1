"""Other people's checkpoints: recognised, read and compared with their config and tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from formats.checkpoints import Written

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.convert.to import convert
from engram_cli.commands.lookup.command import lookup
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.reading import LookupRequest
from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.model_folder import CheckpointRows
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY
from engram_cli.rows import DTYPES
from engram_cli.rows.source import ROWS
from engram_cli.vocab.compress import CompressedVocab


def opened(path: Path, kind: str, tokenizer: Path | None = None) -> CheckpointRows:
    found = find_artifact(path)
    assert found.kind == kind
    source = found.open(tokenizer=tokenizer)
    assert isinstance(source, CheckpointRows)
    return source


def results(source: CheckpointRows, result: str) -> dict[str, tuple[str, str]]:
    return {c.name: (c.found, c.expected) for c in source.checks if c.result == result}


def same_rows(source: CheckpointRows, written: Written, dtype: str) -> None:
    """Every row reads as it was written, in order, at random and as vectors."""
    for layer, rows in written.rows.items():
        ids = np.random.default_rng(3).integers(0, len(rows), 50)
        assert np.array_equal(source.lines(layer, ROWS, 0, len(rows)), rows)
        stored, scales = source.stored(layer, ids)
        assert np.array_equal(stored, rows[ids])
        values = np.empty((len(ids), rows.shape[1]), dtype=np.float32)
        kept = written.scales.get(layer)
        if dtype == "fp8_e8m0" and kept is not None:
            scales = kept[ids]
        if dtype == "fp8" and kept is not None:
            scales = (kept.astype(np.uint32) << 16).view(np.float32)
        DTYPES.load(dtype).decode(rows[ids], scales, values)
        assert np.array_equal(source.vectors(layer, ids), values)


@pytest.mark.parametrize("nested", [True, False])
def test_deepseek_v41(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, nested: bool
) -> None:
    written = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file, nested=nested)
    source = opened(written.path, "deepseek-v4.1")
    assert source.layout.fingerprint == written.layout.fingerprint
    assert source.layers == (1, 3)
    assert source.dialect == ("text_config" if nested else "flat")
    assert not results(source, "differs")
    assert set(results(source, "undecided")) == {"layer 1: multipliers", "layer 3: multipliers"}
    same_rows(source, written, "fp8_e8m0")


def test_without_a_tokenizer_no_token_is_hashed(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    written = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None)
    source = opened(written.path, "deepseek-v4.1")
    assert source.layout.vocab_digest == UNKNOWN_VOCABULARY
    assert not results(source, "differs")
    assert "compressed size" in results(source, "undecided")
    for own, other in zip(source.layout.layers, written.layout.layers, strict=True):
        assert own == other  # moduli and multipliers follow from sizes alone
    given = opened(written.path, "deepseek-v4.1", tokenizer_file)
    assert given.layout.fingerprint == written.layout.fingerprint


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"engram_num_embeddings": [5, 6]}, "layer 1: rows of the config"),
        ({"engram_vocab_size": 101}, "layer 1: rows, shape"),
        ({"engram_compressed_vocab_size": 77}, "compressed size"),
        ({"engram_head_dim": 32}, "layer 3: rows, shape"),
        ({"hc_mult": 2}, "layer 1: q_weight, shape"),
        ({"vocab_size": 9}, "token ids"),
    ],
)
def test_a_config_that_does_not_fit(
    tmp_path: Path,
    small_vocab: CompressedVocab,
    tokenizer_file: Path,
    changes: dict[str, Any],
    check: str,
) -> None:
    written = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file, changes=changes)
    assert check in results(opened(written.path, "deepseek-v4.1"), "differs")


def test_files_that_are_missing_or_short(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    written = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    first, second = sorted(written.path.glob("*.safetensors"))
    with first.open("r+b") as file:
        file.truncate(first.stat().st_size - 8192)
    second.unlink()
    differs = results(opened(written.path, "deepseek-v4.1"), "differs")
    assert second.name in differs["files and tensors of the index"][0]
    assert first.name in differs["sizes of the files read"][0]
    assert differs["layer 3: rows"] == ("missing", "there")


def test_true_sizes(tmp_path: Path, deepseek_vocab: CompressedVocab,
                    deepseek_tokenizer_file: Path) -> None:  # fmt: skip
    """Two tables of 98 GB each, all holes but two rows, beyond 2^32 bytes and rows x bytes."""
    written = checkpoints.deepseek_v41(
        tmp_path / "m",
        deepseek_vocab,
        deepseek_tokenizer_file,
        sparse=True,
        dim=256,
        rows_per_head=16_000_000,
    )
    assert written.layout.layers[0].rows == 384_006_168
    row = np.arange(256, dtype=np.uint8) & 0x7E
    source = opened(written.path, "deepseek-v4.1")
    assert not results(source, "differs")
    wanted = [17_000_000, 384_006_167]
    for part, values in ((ROWS, row), ("scales", np.full(8, 128, dtype=np.uint8))):
        (span,) = source.spans(1, part)
        with span.file.open("r+b") as file:
            for index in wanted:
                file.seek(span.begin + index * len(values))
                file.write(values.tobytes())
    found = source.vectors(1, [5, *wanted])
    assert not found[0].any()
    assert np.array_equal(found[1], found[2])
    assert found[1].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_qwen_ple(tmp_path: Path, dtype: str) -> None:
    written = checkpoints.qwen_ple(tmp_path / "m", dtype=dtype)
    source = opened(written.path, "qwen-ple")
    assert source.layout.fingerprint == written.layout.fingerprint
    assert not results(source, "differs")
    assert set(results(source, "undecided")) == {"token ids"}  # no tokenizer was given
    same_rows(source, written, "bfloat16" if dtype == "bfloat16" else "fp8")


def e2m1_by_hand(rows: np.ndarray) -> np.ndarray:
    """The float4 items of packed rows [n, dim / 2], the lower half first: sign, 2 bits, 1 bit."""
    codes = np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), -1)
    exponent, mantissa = codes >> 1 & 3, codes & 1
    sizes = np.where(exponent == 0, mantissa / 2, (1 + mantissa / 2) * 2.0 ** (exponent - 1.0))
    return np.where(codes & 8, -sizes, sizes)


def test_qwen_ple_of_nvfp4(tmp_path: Path) -> None:
    """Items of half a byte, e4m3 scales of 16 values, and a float32 for each shard."""
    written = checkpoints.qwen_ple(tmp_path / "m", dtype="nvfp4")
    source = opened(written.path, "qwen-ple")
    assert (source.dtype, source.dim) == ("nvfp4", 160)
    assert not results(source, "differs")
    assert set(results(source, "undecided")) == {"token ids"}
    rows, scales = written.rows[2], written.scales[2]
    e4m3 = DTYPES.load("fp8").items.values
    assert e4m3 is not None
    shard = np.arange(len(rows)) * 4 // len(rows)
    factors = np.repeat(e4m3[scales], 16, axis=1) * (0.001 * (shard[:, None] + 1))
    expected = e2m1_by_hand(rows) * factors
    ids = np.array([0, 543, 544, 2175, 3, 1088])
    np.testing.assert_allclose(source.vectors(2, ids), expected[ids], rtol=1e-6)
    values = np.empty((700, 160), dtype=np.float32)
    source.read(2, 200, values)
    np.testing.assert_allclose(values, expected[200:900], rtol=1e-6)
    found = lookup(LookupRequest(path=written.path, ids=(5, 9, 11), folder=tmp_path))
    assert found.kind == "qwen-ple"
    table = tmp_path / "t.zarr"
    convert(ConvertRequest(source=written.path, to="table", dtype="float32", out=table))
    assert np.array_equal(find_artifact(table).open().vectors(2, ids), source.vectors(2, ids))
    with pytest.raises(InputError, match="nvfp4"):
        convert(ConvertRequest(source=written.path, to="table", out=tmp_path / "u.zarr"))


def test_nvfp4_without_its_scales(tmp_path: Path) -> None:
    written = checkpoints.qwen_ple(tmp_path / "m", dtype="nvfp4")
    for file in written.path.glob("*.safetensors"):
        raw = file.read_bytes()
        file.write_bytes(raw.replace(b"shard_1.weight_scale_2", b"shard_1.weight_scale_3"))
    index = written.path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("shard_1.weight_scale_2", "shard_1.weight_scale_3"))
    with pytest.raises(InputError, match="3 scales of 4 tensors of rows"):
        opened(written.path, "qwen-ple")


def test_stored_constants_win(tmp_path: Path) -> None:
    written = checkpoints.qwen_ple(tmp_path / "m", changes={"seed": 9})
    source = opened(written.path, "qwen-ple")
    assert set(results(source, "differs")) == {"layer 2: layer_multipliers"}
    assert source.layout.layers[0].multipliers == written.layout.layers[0].multipliers
    bare = checkpoints.qwen_ple(tmp_path / "n", stored=False)
    undecided = results(opened(bare.path, "qwen-ple"), "undecided")
    assert len(undecided) == 3 + 1


def test_a_shard_is_missing(tmp_path: Path) -> None:
    written = checkpoints.qwen_ple(tmp_path / "m", changes={"split_ngram_parts": 8})
    assert "layer 2: number of shards" in results(opened(written.path, "qwen-ple"), "differs")


@pytest.mark.parametrize("old_names", [False, True])
def test_longcat(tmp_path: Path, old_names: bool) -> None:
    written = checkpoints.longcat(tmp_path / "m", old_names=old_names)
    source = opened(written.path, "longcat")
    assert source.layout.fingerprint == written.layout.fingerprint
    assert not results(source, "differs")
    same_rows(source, written, "bfloat16")


def test_a_table_is_missing(tmp_path: Path) -> None:
    source = opened(checkpoints.longcat(tmp_path / "m", tables=7).path, "longcat")
    assert source.layers == ()
    assert "table 7" in results(source, "differs")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F8_E4M3", "shape": [2**62, 8], "data_offsets": [0, 2**62 * 8]},
        {"dtype": "F8_E4M3", "shape": [4, 8], "data_offsets": [0, 31]},
        {"dtype": "F8_E4M3", "shape": [-4, -8], "data_offsets": [0, 32]},
        {"dtype": "F8_E4M3", "shape": [[4], 8], "data_offsets": [0, 32]},
        {"dtype": "WHAT", "shape": [4, 8], "data_offsets": [0, 32]},
        {"dtype": "F8_E4M3", "shape": [4, 8], "data_offsets": [2**63, 2**63 + 32]},
        "text",
    ],
)
def test_headers_that_lie(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, entry: Any
) -> None:
    written = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    file = sorted(written.path.glob("*.safetensors"))[0]
    header = json.dumps({"layers.1.engram.embed.weight": entry}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    try:
        source = opened(written.path, "deepseek-v4.1")
    except (ArtifactError, InputError):
        return
    assert results(source, "differs")


def test_an_index_that_leads_elsewhere(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    written = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    index = written.path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(ArtifactError, match="names the file"):
        opened(written.path, "deepseek-v4.1")


def test_a_config_that_is_no_config(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    written = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None)
    for wrong in ("x", -1, 2**70, None, [1], 1.5, True):
        text = {"engram_layer_ids": [1, 3], "engram_max_ngram_size": wrong}
        (written.path / "config.json").write_text(json.dumps(text))
        with pytest.raises((ArtifactError, InputError)):
            opened(written.path, "deepseek-v4.1")


def test_layouts_without_a_vocabulary_refuse_tokens(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    from engram_cli import hash_tokens
    from engram_cli.errors import EngramError

    written = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None)
    source = opened(written.path, "deepseek-v4.1")
    with pytest.raises(EngramError):
        hash_tokens(replace(source.layout), [1, 2, 3], layer=1)
