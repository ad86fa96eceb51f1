"""convert --to bundle: the same files that attach writes, for any source, and resumed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands.made import Made, make
from formats import checkpoints
from formats.converted import converted, stored
from formats.test_model_writers import interrupted

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.convert.command import ConvertRequest, convert_table
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.errors import InputError, MismatchError, OutputError
from engram_cli.formats import bundle_writer, row_writer
from engram_cli.formats.bundle import read_bundle
from engram_cli.rows.source import HITS, ROWS
from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Made:
    return make(tmp_path_factory.mktemp("bundle") / "work", tokenizer_file, small_vocab)


@pytest.mark.parametrize("dtype", ["float32", "int8", "fp8"])
def test_the_files_are_those_of_attach(
    made: Made, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards, hits, weights and description, byte for byte; also where shards are cut."""
    monkeypatch.setattr(bundle_writer.plan_shards, "__defaults__", (20_000, None))
    defaults = bundle_writer.write_bundle.__kwdefaults__ | {"shard_bytes": 20_000}
    monkeypatch.setattr(bundle_writer.write_bundle, "__kwdefaults__", defaults)
    table = made.table
    if dtype != "float32":
        table = tmp_path / "t.zarr"
        convert_table(ConvertRequest(source=made.table, dtype=dtype, out=table))
    checkpoint = made.folder / "ckpt"
    attach_checkpoint(
        AttachRequest(checkpoint=checkpoint, table=table, out=tmp_path / "a", force=True)
    )
    result = converted(table, "bundle", tmp_path / "b", patch=checkpoint)
    assert result.verified
    assert sorted(os.listdir(tmp_path / "a")) == sorted(result.files)
    assert len(result.files) > 8
    for name in result.files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert verify(VerifyRequest(path=tmp_path / "b", folder=tmp_path)).ok


def test_the_disk_begins_while_rows_are_written(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted(made.bundle, "bundle", tmp_path / "a")
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(row_writer, "start_writing", lambda *asked: begun.append(asked[1:]))
    monkeypatch.setattr(row_writer, "START_BYTES", 10_000)
    monkeypatch.setattr(row_writer, "PIECE_BYTES", 2000)
    result = converted(made.bundle, "bundle", tmp_path / "b")
    assert set(begun) == {(0, 0)}, "all that each file has"
    assert len(begun) > 2
    for name in result.files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_bundle_keeps_its_weights(made: Made, tmp_path: Path) -> None:
    converted(made.bundle, "bundle", tmp_path / "b", dtype="bfloat16", layers=(2,))
    old, new = read_bundle(made.bundle), read_bundle(tmp_path / "b")
    assert (new.spec.layers, new.spec.dtype, new.spec.num_layers) == ((2,), "bfloat16", 4)
    assert new.spec.decoder_layers == (old.spec.index(2),)
    assert old.dense[2].keys() == new.dense[2].keys()
    for name, value in old.dense[2].items():
        assert np.array_equal(value, new.dense[2][name])
    sources = [find_artifact(path).open() for path in (made.bundle, tmp_path / "b")]
    assert np.array_equal(stored(sources[0], 2, HITS), stored(sources[1], 2, HITS))


def test_an_interrupted_bundle_is_resumed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests go on over the rows that were written before."""
    monkeypatch.setattr(row_writer, "PIECE_BYTES", 24 * 100)
    checkpoint = made.folder / "ckpt"
    converted(made.table, "bundle", tmp_path / "whole", patch=checkpoint)
    with monkeypatch.context() as patch:
        interrupted(patch, 40, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            converted(made.table, "bundle", tmp_path / "b", patch=checkpoint, threads=1)
    note = json.loads((tmp_path / "b.partial" / "rows.json").read_text())
    assert note["rows"] > 0
    result = converted(made.table, "bundle", tmp_path / "b", patch=checkpoint)
    for name in result.files:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert verify(VerifyRequest(path=tmp_path / "b", folder=tmp_path)).ok


def test_without_a_model_or_with_another(
    made: Made, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    with pytest.raises(InputError, match="does not say which model"):
        converted(made.table, "bundle", tmp_path / "b")
    other = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    model = tmp_path / "model"
    shutil.copytree(made.folder / "ckpt", model, ignore=shutil.ignore_patterns("engram"))
    (model / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}'
    )
    with pytest.raises(MismatchError, match="has 2 layers, the model only 1"):
        converted(other.path, "bundle", tmp_path / "b", patch=model)
    result = converted(other.path, "bundle", tmp_path / "b", patch=model, layers=(3,))
    assert "the module starts new" in result.notes[0]
    assert np.array_equal(stored(find_artifact(tmp_path / "b").open(), 3, ROWS), other.rows[3])
    with pytest.raises(OutputError, match="already exists"):
        converted(other.path, "bundle", tmp_path / "b", patch=model, layers=(3,))
