"""Loading a tokenizer: the same text has the same tokens, and memory follows the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import PROSE, byte_level_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from engram_cli.corpus.encode import ChoosingEncoder
from engram_cli.errors import VocabularyError
from engram_cli.progress import SILENT, Silent
from engram_cli.vocab.compress import compress_vocab
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer


class Heard(Silent):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def saved(folder: Path, tokenizer: Tokenizer, **model: Any) -> Path:
    """The tokenizer's file, with other settings of its model."""
    document = json.loads(tokenizer.to_str())
    document["model"] |= model
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    return path


def test_dropout_is_turned_off_and_that_is_said(tmp_path: Path) -> None:
    plain = load_tokenizer(saved(tmp_path, byte_level_tokenizer())).encode(PROSE[0])
    path = saved(tmp_path, byte_level_tokenizer(), dropout=0.9)
    drawn = Tokenizer.from_file(str(path))
    assert len({tuple(drawn.encode(PROSE[0]).ids) for _ in range(20)}) > 1
    heard = Heard()
    found = load_tokenizer(path, heard)
    assert heard.notes == [
        f"{path}: dropout 0.9 is turned off, so that a text always has the same tokens"
    ]
    assert all(found.encode(PROSE[0]) == plain for _ in range(20))
    assert all(list(each.ids) == plain for each in found.encode_batch([PROSE[0]] * 20))


def test_the_fast_encoder_drops_nothing_either(tmp_path: Path) -> None:
    found = load_tokenizer(saved(tmp_path, byte_level_tokenizer(), dropout=0.9))
    encoder, texts = ChoosingEncoder(found, SILENT, patient=True), [PROSE[0]] * 20
    encoder.encode(texts)
    assert encoder.name.startswith("fastokens")
    for _ in range(3):
        ids, _ = encoder.flatten(encoder.encode(texts))
        assert ids.tolist() == found.encode(PROSE[0]) * 20
    encoder.close()


def test_a_tokenizer_without_dropout_is_taken_as_it_is(tmp_path: Path) -> None:
    heard = Heard()
    assert not load_tokenizer(saved(tmp_path, byte_level_tokenizer()), heard).changed
    assert heard.notes == []


def test_the_sampling_of_unigrams_is_turned_off() -> None:
    """No file of today's tokenizers holds it; a later one may read it."""
    from engram_cli.vocab.tokenizer import _without_randomness

    model = models.Unigram([("a", -1.0), ("b", -2.0), ("ab", -2.5)], 0)
    if not hasattr(model, "alpha"):
        pytest.skip("this tokenizers does not sample unigrams")
    model.alpha = 0.1
    assert _without_randomness(model) == "alpha 0.1"
    assert model.alpha is None


def test_truncation_and_padding_of_the_file_are_turned_off(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    plain = tokenizer.encode(PROSE[0]).ids
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=100)
    assert load_tokenizer(saved(tmp_path, tokenizer)).encode(PROSE[0]) == plain


def sparse(folder: Path, last: int) -> TokenizerFile:
    """A tokenizer of three tokens, one of them with the id `last`."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": last}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return load_tokenizer(saved(folder, tokenizer))


def test_one_id_far_above_all_others_is_refused_before_a_map_is_made(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"has 3 tokens and one with the id 60,000,000"):
        compress_vocab(sparse(tmp_path, 60_000_000))
    assert compress_vocab(sparse(tmp_path, 5_000)).vocab_size == 5_001
