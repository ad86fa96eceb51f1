"""Sources that are no plain files, are damaged, or have odd names: one line says what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from formats import checkpoints

import engram_cli.commands.artifact as artifact
from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.convert.to import convert
from engram_cli.commands.lookup.command import lookup
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.reading import LookupRequest
from engram_cli.errors import ArtifactError, EngramError, InputError, OutputError, VocabularyError
from engram_cli.files import read_json
from engram_cli.formats import row_files
from engram_cli.remote.store import filesystem
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.tokenizer import find_tokenizer


@pytest.fixture
def release(tmp_path: Path, small_vocab: CompressedVocab) -> Path:
    return checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None).path


def test_a_pipe_is_not_waited_for(tmp_path: Path, release: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"model\.gguf is neither a file nor a folder"):
        find_artifact(tmp_path / "model.gguf")
    (release / "config.json").unlink()
    os.mkfifo(release / "config.json")
    with pytest.raises(InputError, match=r"config\.json is no file"):
        find_artifact(release)
    with pytest.raises(InputError, match=r"config\.json is no file"):
        read_json(release / "config.json", "a model's config")
    with pytest.raises(VocabularyError, match=r"config\.json is no file"):
        find_tokenizer(release / "config.json")


@pytest.mark.parametrize("raw", ["", "{", "[]"])
def test_a_config_that_was_not_downloaded_whole_is_named(release: Path, raw: str) -> None:
    (release / "config.json").write_text(raw)
    with pytest.raises(ArtifactError, match=r"config\.json (is not JSON|holds no JSON object)"):
        find_artifact(release)


def test_a_folder_that_may_not_be_entered(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "engram.json")

    monkeypatch.setattr(artifact, "_find", denied)  # root may enter any folder
    with pytest.raises(InputError, match=r"cannot read .*m: Permission denied"):
        find_artifact(release)


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_shard_cut_in_its_header_is_to_be_downloaded_again(release: Path, size: int) -> None:
    os.truncate(release / "model-00001-of-00002.safetensors", size)
    with pytest.raises(ArtifactError) as caught:
        find_artifact(release).open()
    assert "model-00001-of-00002.safetensors" in caught.value.message
    assert caught.value.hint is not None
    assert "download it again" in caught.value.hint


def test_an_index_that_leads_elsewhere_says_so(release: Path) -> None:
    index = release / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["layers.1.engram.embed.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(listed))
    with pytest.raises(ArtifactError, match="which is no file of its folder"):
        find_artifact(release).open()


@pytest.mark.parametrize("key", ["engram_vocab_size", "engram_num_embeddings"])
def test_a_message_shows_the_beginning_of_a_huge_number(
    tmp_path: Path, small_vocab: CompressedVocab, key: str
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None, changes={key: 10**400})
    with pytest.raises(EngramError, match=rf"{key} = 1000") as caught:
        find_artifact(made.path).open()
    assert len(caught.value.message) < 150


def test_names_that_are_not_utf8(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf"))
    made = checkpoints.deepseek_gguf(odd, small_vocab, "ds4")
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"))
    convert(ConvertRequest(source=made.path, out=out, to="row264"))
    assert find_artifact(out).open().layout.fingerprint == made.layout.fingerprint
    again = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfd.gguf"))
    convert(ConvertRequest(source=made.path, out=again, to="gguf", dialect="llama.cpp"))
    assert find_artifact(again).open().layout.fingerprint == made.layout.fingerprint


def test_nothing_is_left_where_the_rows_do_not_fit(
    tmp_path: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    monkeypatch.setattr(row_files, "free_bytes", lambda _: 1000)
    with pytest.raises(OutputError, match="1,000 are free"):
        convert(ConvertRequest(source=made.path, out=tmp_path / "n", to="row264"))
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_hint_does_not_lead_to_the_next_refusal(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    """A dtype is proposed only if it is the dtype alone that does not fit."""
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    with pytest.raises(InputError, match=r"is hashed by deepseek-v4\.1"):
        convert(ConvertRequest(source=made.path, out=tmp_path / "n", to="engramdb"))
    assert os.listdir(tmp_path) == ["m"]


def test_ids_need_the_tokenizer_too(release: Path) -> None:
    with pytest.raises(InputError, match="no token map") as caught:
        lookup(LookupRequest(path=release, ids=(1, 2, 3)))
    assert caught.value.hint is not None
    assert "--tokenizer" in caught.value.hint


def test_a_store_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(fsspec.core, "url_to_fs", unreachable)
    with pytest.raises(InputError, match="cannot open ftp://x: Name or service not known"):
        filesystem("ftp://x")
