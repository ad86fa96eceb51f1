"""The pad token: chosen among the special tokens by name, recorded, and used by layouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer, wordpiece_tokenizer

from engram_cli.commands.corpus_tokenizer import note_pad
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.hashing.schemes import hash_layout
from engram_cli.vocab.compress import CompressedVocab, compress_vocab
from engram_cli.vocab.lookup import VocabMap
from engram_cli.vocab.parquet import read_map, read_vocab, write_vocab
from engram_cli.vocab.tokenizer import choose_pad

SMALL = {"heads": 2, "rows_per_head": 500, "layers": (1,)}


class Listener:
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    ("special", "declared", "expected"),
    [
        # DeepSeek: its tokenizer_config.json declares the end of sentence, its layouts pad with 2.
        ({0: "<｜begin▁of▁sentence｜>", 1: "<｜end▁of▁sentence｜>", 2: "<｜▁pad▁｜>"}, 1, 2),
        ({0: "<unk>", 1: "<s>", 2: "</s>"}, None, 2),
        ({0: "<unk>", 1: "<s>", 2: "</s>"}, 0, 0),
        ({0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>"}, None, 1),
        ({0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}, None, 0),
        ({50256: "<|endoftext|>"}, None, 50256),
        ({7: "<|im_start|>", 8: "<|endoftext|>", 9: "<|image_pad|>"}, None, 8),
        ({0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>"}, None, 4),
        ({5: "<a>", 3: "<b>"}, None, 3),
        ({5: "<a>", 3: "<b>"}, 99, 3),
        ({}, 99, 99),
        ({}, None, None),
    ],
)
def test_the_name_decides(
    special: dict[int, str], declared: int | None, expected: int | None
) -> None:
    assert choose_pad(special, declared) == expected


@pytest.mark.parametrize(
    ("make", "token"),
    [
        (byte_level_tokenizer, "<pad>"),
        (sentencepiece_tokenizer, "</s>"),
        (wordpiece_tokenizer, None),  # no token of it is marked special
    ],
)
def test_tokenizers_of_three_kinds(make, token: str | None, tmp_path: Path) -> None:
    tokenizer = make()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocab = compress_vocab(tmp_path)
    assert vocab.pad_id == (None if token is None else tokenizer.token_to_id(token))


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("tokenizer_config.json", {"pad_token": "<unk>"}, "<unk>"),
        ("tokenizer_config.json", {"pad_token": {"content": "<s>"}}, "<s>"),
        ("tokenizer_config.json", {"pad_token": "<nowhere>"}, "</s>"),
        ("tokenizer_config.json", {"pad_token": None}, "</s>"),
        ("config.json", {"pad_token_id": 0}, "<unk>"),
        ("config.json", {"text_config": {"pad_token_id": 1}}, "<s>"),
        ("config.json", {"pad_token_id": 270}, "</s>"),  # an ordinary token
        ("config.json", {"pad_token_id": -1}, "</s>"),
        ("config.json", {"pad_token_id": True}, "</s>"),
    ],
)
def test_the_checkpoint_may_declare_one(
    name: str, settings: dict[str, object], expected: str, tmp_path: Path
) -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(json.dumps(settings))
    assert compress_vocab(tmp_path).pad_id == tokenizer.token_to_id(expected)


def test_damaged_settings_declare_nothing(tmp_path: Path) -> None:
    sentencepiece_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    assert compress_vocab(tmp_path).pad_id == 2


def test_deepseeks_layouts_keep_theirs(deepseek_vocab: CompressedVocab) -> None:
    assert deepseek_vocab.pad_id == 2
    for scheme in ("engram-v1", "deepseek-v4.1"):
        layout = hash_layout(scheme, deepseek_vocab, rows_per_head=100)
        assert layout.parameters["pad_id"] == 2
        assert layout.filler_id == deepseek_vocab.lookup[2]


def test_a_bare_map_and_the_released_scheme_keep_2(small_vocab: CompressedVocab) -> None:
    bare = VocabMap(lookup=small_vocab.lookup, size=small_vocab.size)
    assert hash_layout("engram-v1", bare, **SMALL).parameters["pad_id"] == 2
    other = replace(small_vocab, pad_id=0)
    assert hash_layout("engram-v1", other, **SMALL).parameters["pad_id"] == 0
    assert hash_layout("engram-v1", other, pad_id=1, **SMALL).parameters["pad_id"] == 1
    assert hash_layout("deepseek-v4.1", other, **SMALL).parameters["pad_id"] == 2


def test_the_start_of_a_document_has_rows_of_its_own(tmp_path: Path) -> None:
    """With pad 2 and a tokenizer whose id 2 is '#', a line after '#' had the rows of a start."""
    tokenizer = byte_level_tokenizer()
    document = json.loads(tokenizer.to_str())
    spellings = {i: token for token, i in document["model"]["vocab"].items()}
    hashes = document["model"]["vocab"]["#"]
    document["model"]["vocab"]["#"], document["model"]["vocab"][spellings[2]] = 2, hashes
    for token in document["added_tokens"]:
        token["id"] = {2: hashes}.get(token["id"], token["id"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    vocab = compress_vocab(tmp_path)
    assert vocab.tokens[2] == "#"
    assert vocab.tokens[vocab.pad_id or 0] == "<pad>"

    def rows(pad_id: int | None, ids: list[int]) -> list[int]:
        layout = hash_layout("engram-v1", vocab, orders=(2,), pad_id=pad_id, **SMALL)
        return list(hash_tokens(layout, [ids], layer=1)[0, -1])

    assert rows(2, [50]) == rows(2, [2, 50])
    assert rows(None, [50]) != rows(None, [2, 50])


def test_it_is_stored_and_old_files_are_read(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    write_vocab(replace(small_vocab, pad_id=1), path)
    assert read_vocab(path).pad_id == read_map(path).pad_id == 1
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"engram"])
    for recorded, expected in ((None, None), (10**9, None), (-1, None), ("2", None), (True, None)):
        changed = about | {"pad_id": recorded}
        pq.write_table(table.replace_schema_metadata({b"engram": json.dumps(changed)}), path)
        assert read_vocab(path).pad_id is read_map(path).pad_id is expected
    del about["pad_id"]  # as earlier versions wrote it
    pq.write_table(table.replace_schema_metadata({b"engram": json.dumps(about)}), path)
    assert read_vocab(path).pad_id == read_map(path).pad_id == 2


def test_an_ordinary_token_is_warned_of(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    write_vocab(small_vocab, path)
    apple = small_vocab.tokens.index("Ġapple")
    listener = Listener()
    for pad_id, token in ((2, "<pad>"), (apple, "Ġapple")):
        layout = hash_layout("engram-v1", small_vocab, pad_id=pad_id, **SMALL)
        pad = note_pad(layout, path, listener)
        assert pad is not None
        assert (pad.token_id, pad.token, pad.special) == (pad_id, token, pad_id == 2)
    assert listener.notes[0] == "pad token: <pad> (id 2)"
    assert listener.notes[1].startswith("warning: the pad token Ġapple")
    assert "shares its rows with the text '␣apple'" in listener.notes[1]
    raw = hash_layout("qwen-ple", vocab_size=500, eos_id=apple, heads=2, rows_per_head=500)
    assert note_pad(raw, path, listener) is not None
    assert "--eos-id" in listener.notes[2]
    assert note_pad(raw, tmp_path / "none.parquet", listener) is None
    tutorial = hash_layout("tutorial", vocab_size=500)
    assert note_pad(tutorial, path, listener) is None
    assert len(listener.notes) == 3
