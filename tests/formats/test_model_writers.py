"""convert --to deepseek-v4.1 and qwen-ple: whole checkpoints, and conversions that are resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from formats.test_converting import same_stored, stored, table, written
from table.tables import build

from engram_cli.commands.artifact import find_artifact
from engram_cli.errors import ArtifactError, InputError, MismatchError, OutputError
from engram_cli.formats import row_writer
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows import stored_as
from engram_cli.rows.source import ROWS, SCALES
from engram_cli.vocab.compress import CompressedVocab


def differs(path: Path) -> list[str]:
    source = find_artifact(path).open()
    return [check.name for check in source.checks if check.result == "differs"]


@pytest.mark.parametrize("nested", [True, False])
def test_deepseek_whole(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, nested: bool
) -> None:
    """A checkpoint written again has the same tensors, and both layouts of the config."""
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file, nested=nested)
    result = written(made.path, "deepseek-v4.1", tmp_path / "n")
    assert (result.verified, result.notes) == (True, ())
    assert not differs(tmp_path / "n")
    same_stored(tmp_path / "n", made.rows, made.scales)
    old, new = find_artifact(made.path).open().folder, find_artifact(tmp_path / "n").open().folder
    assert old.tensors.keys() == new.tensors.keys()
    for name, tensor in old.tensors.items():
        assert np.array_equal(tensor.values(), new.tensors[name].values())
    text = json.loads((tmp_path / "n" / "config.json").read_text())
    flat = json.loads((tmp_path / "n" / "inference" / "config.json").read_text())
    assert text["text_config"]["engram_pad_token_id"] == flat["engram_pad_id"] == 2
    assert text["quantization_config"] == flat["quantization_config"]
    assert (text["image_token_id"], flat["hidden_size"]) == (3, checkpoints.HIDDEN)
    index = json.loads((tmp_path / "n" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == new.tensors.keys()
    (tmp_path / "n" / "config.json").unlink()  # the flat one alone is read too
    assert find_artifact(tmp_path / "n").open().layout.fingerprint == made.layout.fingerprint


def test_deepseek_from_a_table_lacks_the_module(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    table(made.path, tmp_path / "t.zarr")
    result = written(tmp_path / "t.zarr", "deepseek-v4.1", tmp_path / "n", tokenizer=tokenizer_file)
    assert [note.partition(":")[0] for note in result.notes] == [
        "not written, because t.zarr has none",
        "config.json has the Engram keys alone",
    ]
    same_stored(tmp_path / "n", made.rows, made.scales)
    assert {name.split(": ")[1] for name in differs(tmp_path / "n")} == {
        "wkv.weight",
        "q_weight",
        "k_weight",
    }
    table(tmp_path / "n", tmp_path / "u.zarr")  # rows do not depend on what is missing
    bare = written(tmp_path / "t.zarr", "deepseek-v4.1", tmp_path / "o", dtype="bfloat16")
    assert "no tokenizer.json" in bare.notes[-1]
    assert "quantization_config" not in json.loads((tmp_path / "o" / "config.json").read_text())
    source = find_artifact(tmp_path / "o").open(tokenizer=tokenizer_file)
    assert (source.dtype, source.layout.fingerprint) == ("bfloat16", made.layout.fingerprint)


def test_another_tokenizer_is_refused(
    tmp_path: Path,
    small_vocab: CompressedVocab,
    tokenizer_file: Path,
    deepseek_tokenizer_file: Path,
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    table(made.path, tmp_path / "t.zarr")
    with pytest.raises(MismatchError, match="another token map"):
        written(
            tmp_path / "t.zarr", "deepseek-v4.1", tmp_path / "n", tokenizer=deepseek_tokenizer_file
        )
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=(97, 211), layers=(1, 3), pad_id=2)
    build(tmp_path / "v1.zarr", layout, dim=32)
    with pytest.raises(MismatchError, match="looks rows up by: rows of each head of scheme"):
        written(tmp_path / "v1.zarr", "deepseek-v4.1", tmp_path / "n", dtype="fp8_e8m0")
    with pytest.raises(MismatchError, match="hashes compressed token ids"):
        written(tmp_path / "t.zarr", "qwen-ple", tmp_path / "n", dtype="fp8")
    assert sorted(os.listdir(tmp_path)) == ["m", "t.zarr", "v1.zarr"]


def test_one_layer(tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path) -> None:
    """The primes of a layer are those of a config that has this layer alone."""
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    written(made.path, "deepseek-v4.1", tmp_path / "n", layers=(3,))
    source = find_artifact(tmp_path / "n").open()
    assert source.layout.layers == made.layout.layers[1:]
    same_stored(tmp_path / "n", {3: made.rows[3]}, {3: made.scales[3]})
    assert not differs(tmp_path / "n")


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_qwen_and_back(tmp_path: Path, dtype: str) -> None:
    made = checkpoints.qwen_ple(tmp_path / "q", dtype=dtype)
    first = written(made.path, "qwen-ple", tmp_path / "r")
    table(made.path, tmp_path / "t.zarr")
    result = written(tmp_path / "t.zarr", "qwen-ple", tmp_path / "s")
    assert (first.verified, result.verified) == (True, True)
    assert "norm_conv" in result.notes[0]
    for path in (tmp_path / "r", tmp_path / "s"):
        assert not differs(path)
        source = find_artifact(path).open()
        assert source.dialect == "128 shards"
        assert np.array_equal(stored(source, 2, ROWS), made.rows[2])
        if dtype != "bfloat16":
            assert source.lines(2, SCALES, 0, 1)[0] == np.float32(2.0**-12 * 1.5)
            assert next(s for n, s in source.folder.tensors.items() if "scale" in n).dtype == (
                "bfloat16"
            )
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["text_config"]["ple_embed_dim"] == 16 * 160


def test_qwen_keeps_its_module_and_its_multipliers(tmp_path: Path) -> None:
    """What lies next to the rows is copied; stored multipliers of another seed are kept."""
    made = checkpoints.qwen_ple(tmp_path / "q", changes={"seed": 99})
    extra = checkpoints.Writer(folder=tmp_path / "extra")
    name = "model.language_model.layers.1.ple.key_proj.weight"
    values = np.arange(12, dtype=np.uint16).reshape(3, 4)
    extra.add("model-00003.safetensors", name, "bfloat16", values)
    extra.write({})
    os.replace(
        tmp_path / "extra" / "model-00003.safetensors", made.path / "model-00003.safetensors"
    )
    path = made.path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][name] = "model-00003.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="layer_multipliers"):
        written(made.path, "qwen-ple", tmp_path / "r")
    result = written(made.path, "qwen-ple", tmp_path / "r", verify=False)
    assert result.notes == ()
    source = find_artifact(tmp_path / "r").open()
    assert source.layout.fingerprint == made.layout.fingerprint
    from safetensors import safe_open

    with safe_open(tmp_path / "r" / "model-00001-of-00001.safetensors", "numpy") as file:
        assert name in file.keys()  # noqa: SIM118
        assert file.get_slice(name).get_shape() == [3, 4]


def test_fp8_with_a_scale_that_bfloat16_does_not_hold(tmp_path: Path) -> None:
    made = checkpoints.qwen_ple(tmp_path / "q")
    result = written(made.path, "qwen-ple", tmp_path / "r", dtype="fp8")
    assert result.verified
    source = find_artifact(tmp_path / "r").open()
    assert not differs(tmp_path / "r")
    table(made.path, tmp_path / "t.zarr", dtype="fp8")
    other = find_artifact(tmp_path / "t.zarr").open()
    assert source.lines(2, SCALES, 0, 1)[0] == other.lines(2, SCALES, 0, 1)[0]
    assert np.array_equal(stored(source, 2, ROWS), stored(other, 2, ROWS))
    again = written(made.path, "qwen-ple", tmp_path / "s", dtype="fp8", scale=0.25)
    assert again.verified
    assert find_artifact(tmp_path / "s").open().lines(2, SCALES, 0, 1)[0] == 0.25
    written(tmp_path / "r", "qwen-ple", tmp_path / "v", dtype="bfloat16")
    assert not differs(tmp_path / "v")
    with pytest.raises(InputError, match="int8"):
        written(made.path, "qwen-ple", tmp_path / "u", dtype="int8")


def interrupted(patch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    """Let the write of the piece with this number fail."""
    real, count = row_writer._write_at, 0

    def failing(*what: Any) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise error
        real(*what)

    patch.setattr(row_writer, "_write_at", failing)


@pytest.mark.parametrize("to", ["row264", "deepseek-v4.1"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left")])
def test_every_conversion_is_resumed(
    tmp_path: Path,
    small_vocab: CompressedVocab,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    error: BaseException,
) -> None:
    for module in (row_writer, stored_as):
        monkeypatch.setattr(module, "PIECE_BYTES", 66 * 300)
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    whole = written(made.path, to, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupted(patch, 9, error)
        with pytest.raises((KeyboardInterrupt, OutputError)):
            written(made.path, to, tmp_path / "n", threads=1)
    assert not (tmp_path / "n").exists()
    note = json.loads((tmp_path / "n.partial" / "rows.json").read_text())
    assert 0 < note["rows"] < sum(map(len, made.rows.values()))
    with pytest.raises(OutputError, match="half-written conversion of another"):
        written(made.path, to, tmp_path / "n", dtype="bfloat16") if to != "row264" else written(
            checkpoints.deepseek_gguf(tmp_path / "o.gguf", small_vocab, "ds4").path,
            to,
            tmp_path / "n",
        )
    counted = []
    real = row_writer.Writer.write
    with monkeypatch.context() as patch:
        patch.setattr(
            row_writer.Writer,
            "write",
            lambda self, task: counted.append(task[2]) or real(self, task),
        )
        result = written(made.path, to, tmp_path / "n")
    assert sum(counted) == sum(map(len, made.rows.values())) - note["rows"]
    assert (result.size, result.verified) == (whole.size, True)
    for name in result.files:
        assert (tmp_path / "n" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted(
        {"m", "n", "whole"} | ({"o.gguf"} if to == "row264" else set())
    )


@pytest.mark.parametrize(
    "note",
    [
        "",
        "[1, 2]",
        '{"request": 7}',
        '{"rows": "many", "copied": 0}',
        '{"rows": -1, "copied": 0}',
        '{"rows": 1e9, "copied": true}',
        '{"rows": 999999999999999999999999, "copied": 0}',
        '{"rows": 0, "copied": 0, "files": ["../q/config.json", 3, "rows.json"]}',
    ],
)
def test_notes_that_cannot_be_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: str
) -> None:
    """What is noted of an interrupted run is checked; nothing outside the work folder goes."""
    made = checkpoints.qwen_ple(tmp_path / "q")
    with monkeypatch.context() as patch:
        interrupted(patch, 4, OSError(28, "No space left"))
        with pytest.raises(OutputError):
            written(made.path, "qwen-ple", tmp_path / "r")
    place = tmp_path / "r.partial" / "rows.json"
    said = json.loads(place.read_text())
    try:
        changed = json.loads(note)
    except ValueError:
        changed = None
    same = isinstance(changed, dict) and "rows" in changed
    place.write_text(json.dumps({"request": said["request"], **changed}) if same else note)
    options = {} if same else {"force": True}
    assert written(made.path, "qwen-ple", tmp_path / "r", **options).verified
    assert (made.path / "config.json").is_file()
    assert np.array_equal(stored(find_artifact(tmp_path / "r").open(), 2, ROWS), made.rows[2])


def test_force_drops_a_half_written_one_and_replaces_only_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, other = checkpoints.qwen_ple(tmp_path / "q"), tmp_path / "r"
    with monkeypatch.context() as patch:
        interrupted(patch, 4, OSError(28, "No space left"))
        with pytest.raises(OutputError):
            written(made.path, "qwen-ple", other)
    (other.with_name("r.partial") / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        written(made.path, "qwen-ple", other)
    (other.with_name("r.partial") / "mine.txt").unlink()
    written(made.path, "qwen-ple", other, dtype="fp8", force=True)
    assert not other.with_name("r.partial").exists()
    written(made.path, "qwen-ple", other, force=True)
    with pytest.raises(OutputError, match="already exists"):
        written(made.path, "qwen-ple", other)
    (other / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        written(made.path, "qwen-ple", other, force=True)


def test_damage_while_writing_is_found_and_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkpoints.qwen_ple(tmp_path / "q")
    real, shard = row_writer._write_at, made.rows[2].nbytes // 128

    def flipped(handle: int, view: memoryview, at: int) -> None:
        raw = bytearray(view)
        raw[7] ^= len(raw) == shard
        real(handle, memoryview(raw), at)

    with monkeypatch.context() as patch:
        patch.setattr(row_writer, "_write_at", flipped)
        with pytest.raises(ArtifactError, match="row 0 of layer 2 is not what was copied"):
            written(made.path, "qwen-ple", tmp_path / "r")
    assert os.listdir(tmp_path) == ["q"]
