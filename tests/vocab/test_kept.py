"""Maps of tokenizers in the user's cache: equal to fresh ones, or made again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from engram_cli.errors import VocabularyError
from engram_cli.vocab import kept
from engram_cli.vocab.compress import compress_vocab
from engram_cli.vocab.lookup import VocabMap


def word_tokenizer(words: list[str]) -> Tokenizer:
    """A tokenizer of whole words, the first two of them special."""
    numbered = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbered, unk_token=words[-1]))
    tokenizer.add_special_tokens(words[:2])
    return tokenizer


WORDS = ["<first>", "<second>", "Apple", "apple", "APPLE", "pear", "Pear"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint's folder with a tokenizer, and an empty cache that keeps small maps too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "_WORTH", 1)
    folder = tmp_path / "ckpt"
    folder.mkdir()
    word_tokenizer(WORDS).save(str(folder / "tokenizer.json"))
    return folder


def same(found: VocabMap, folder: Path) -> None:
    whole = compress_vocab(folder)
    np.testing.assert_array_equal(found.lookup, whole.lookup)
    assert (found.size, found.pad_id, found.digest) == (whole.size, whole.pad_id, whole.digest)


def files() -> list[Path]:
    return sorted(kept.cache_folder().iterdir())


def test_a_pipe_in_the_cache_is_not_waited_for(folder: Path) -> None:
    kept.token_map(folder)
    (place,) = files()
    place.unlink()
    os.mkfifo(place)
    same(kept.token_map(folder), folder)
    assert place.is_file()


def test_a_kept_map_that_does_not_fit_is_made_again(folder: Path) -> None:
    kept.token_map(folder)
    (place,) = files()
    wrong = kept.VocabMap(lookup=np.zeros(len(WORDS), np.int32), size=1)
    kept._keep(place, wrong)  # whole, with its digest
    assert kept.token_map(folder).digest == wrong.digest
    expected = compress_vocab(folder).digest
    same(kept.token_map(folder, lambda vocab: vocab.digest == expected), folder)
    same(kept.token_map(folder), folder)


def test_a_kept_map_is_the_one_that_was_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same(kept.token_map(folder), folder)
    assert len(files()) == 1
    expected = compress_vocab(folder)
    monkeypatch.setattr(kept, "compress_vocab", pytest.fail)
    found = kept.token_map(folder / "tokenizer.json")
    np.testing.assert_array_equal(found.lookup, expected.lookup)
    assert found.pad_id == expected.pad_id


def test_small_maps_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_WORTH", 2**14)
    same(kept.token_map(folder), folder)
    assert not kept.cache_folder().exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_what_a_map_follows_from_makes_another(folder: Path, name: str) -> None:
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    before = kept.token_map(folder)
    changed = {
        "tokenizer.json": lambda: word_tokenizer([*WORDS, "plum"]).save(str(folder / name)),
        "tokenizer_config.json": lambda: (folder / name).write_text('{"pad_token": "<second>"}'),
        "config.json": lambda: (folder / name).write_text('{"pad_token_id": 1}'),
    }
    changed[name]()
    after = kept.token_map(folder)
    same(after, folder)
    assert len(files()) == 2
    assert (before.pad_id, before.digest) != (after.pad_id, after.digest)


def test_another_version_of_tokenizers_makes_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.token_map(folder)
    monkeypatch.setattr(kept, "version", lambda name: "0.0.1")
    same(kept.token_map(folder), folder)
    assert len(files()) == 2


@pytest.mark.parametrize("cut", [0, 1, 40, 300, -1])
def test_a_damaged_map_is_made_again(folder: Path, cut: int) -> None:
    kept.token_map(folder)
    (file,) = files()
    file.write_bytes(file.read_bytes()[:cut])
    same(kept.token_map(folder), folder)
    assert kept._kept(file) is not None


def test_a_flipped_bit_is_found(folder: Path) -> None:
    kept.token_map(folder)
    (file,) = files()
    raw = file.read_bytes()
    for at in range(len(raw)):
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        found = kept._kept(file)
        assert found is None


def test_a_cache_that_cannot_be_written_is_no_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    same(kept.token_map(folder), folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    same(kept.token_map(folder), folder)
    assert files() == []  # nothing half-written stays


def test_a_tokenizer_that_cannot_be_read_is_the_same_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(VocabularyError, match=r"not a tokenizer\.json"):
        kept.token_map(folder)
    assert not kept.cache_folder().exists()
