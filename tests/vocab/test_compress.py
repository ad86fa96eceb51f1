"""Compressed vocabularies of real and small tokenizers, against the definition written plainly."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer, wordpiece_tokenizer
from tokenizers import Tokenizer

from engram_cli.errors import ArtifactError, InputError, TokenIdError, VocabularyError
from engram_cli.vocab.compress import CompressedVocab, compress_vocab
from engram_cli.vocab.groups import diff, group_of_text, largest_groups, readable
from engram_cli.vocab.normalize import _LONE_SPACE, _RUNS, _WHITE, library_normalizer, normalizer
from engram_cli.vocab.parquet import read_map, read_vocab, write_vocab


def normalize_plain(text: str) -> str:
    """`normalizer()` written out with the standard library; equal to it up to Unicode versions."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    text = "".join(c for c in text if unicodedata.category(c)[0] != "M")
    text = "".join(c.lower() for c in text)
    text = _RUNS.sub(" ", text)
    return " " if text == " " else text.strip(_WHITE).replace(_LONE_SPACE, " ")


def plain_lookup(tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The definition, one token at a time, with the plain normaliser."""
    opened: dict[str, int] = {}
    ids = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
    lookup = [-1] * (ids[-1] + 1)
    for token_id in ids:
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        partial = "\ufffd" in text
        key = tokenizer.id_to_token(token_id) if partial else normalize_plain(text) or text
        lookup[token_id] = opened.setdefault(key, len(opened))
    return lookup, len(opened)


def test_the_published_size_is_reproduced(deepseek_vocab: CompressedVocab) -> None:
    assert deepseek_vocab.vocab_size == deepseek_vocab.token_count == 129_280
    assert deepseek_vocab.size == 99_092
    assert round(100 * deepseek_vocab.reduction, 2) == 23.35


@pytest.mark.parametrize(
    "make", [byte_level_tokenizer, sentencepiece_tokenizer, wordpiece_tokenizer]
)
def test_every_kind_of_tokenizer_follows_the_definition(make, tmp_path: Path) -> None:
    tokenizer = make()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    vocab = compress_vocab(tmp_path)
    lookup, size = plain_lookup(tokenizer)
    assert vocab.lookup.tolist() == lookup
    assert vocab.size == size


def test_groups_of_a_byte_level_tokenizer(small_vocab: CompressedVocab) -> None:
    apple = group_of_text(small_vocab, "apple")
    assert apple is not None
    assert apple.key == "apple"
    assert {"Apple Pie"}.isdisjoint(member.text for member in apple.members)
    texts = {small_vocab.texts[i] for i in small_vocab.members(apple.compressed_id)}
    assert {" Apple", "apple"} & texts
    assert all(text.strip().lower() == "apple" for text in texts)


def test_sentencepiece_byte_tokens_keep_their_own_ids(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocab = compress_vocab(tmp_path)
    partial = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(0x80, 0x100)]
    assert len({int(vocab.lookup[i]) for i in partial}) == 128
    assert vocab.partial_count == 128
    shared = {int(vocab.lookup[tokenizer.token_to_id(t)]) for t in ("▁apple", "▁Apple", "apple")}
    assert len(shared) == 1
    space = {int(vocab.lookup[tokenizer.token_to_id(t)]) for t in ("▁", "▁▁", "<0x20>", "<0x0A>")}
    assert len(space) == 1


def test_holes_in_the_id_space_are_no_tokens(tmp_path: Path) -> None:
    wordpiece_tokenizer().save(str(tmp_path / "tokenizer.json"))
    vocab = compress_vocab(tmp_path)
    assert vocab.vocab_size == 24
    assert vocab.token_count == 11
    assert vocab.lookup[1] == -1
    assert vocab.lookup[22] == vocab.lookup[23]  # été, ete
    with pytest.raises(TokenIdError, match="token id 1 is one that no token has"):
        vocab.compress([10, 1])


def test_compress_passes_negative_ids_and_refuses_others(small_vocab: CompressedVocab) -> None:
    ids = np.array([[3, -100], [5, 2]])
    mapped = small_vocab.compress(ids)
    assert mapped.shape == (2, 2)
    assert mapped[0, 1] == -100
    assert mapped[1, 0] == small_vocab.lookup[5]
    with pytest.raises(TokenIdError, match="beyond the vocabulary"):
        small_vocab.compress([small_vocab.vocab_size])


@given(st.text(max_size=12))
def test_the_normaliser_equals_its_plain_twin(text: str) -> None:
    # The two sides know different Unicode versions: keep to characters that are old and settled.
    settled = unicodedata.ucd_3_2_0
    known = "".join(c for c in text if settled.category(c) not in ("Cn", "Co", "Cs"))
    assert normalizer()(known) == normalize_plain(known)


@given(st.text(st.characters(max_codepoint=127), max_size=12))
def test_the_short_cut_for_ascii_changes_nothing(text: str) -> None:
    assert normalizer()(text) == library_normalizer()(text)


def test_the_short_cut_changes_no_token_of_a_real_tokenizer(
    deepseek_vocab: CompressedVocab,
) -> None:
    library, ours = library_normalizer(), normalizer()
    texts = [text for text in deepseek_vocab.texts if text.isascii()]
    assert len(texts) > 70_000
    assert [ours(text) for text in texts] == [library(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (" ", " "),
        ("\t\n", " "),
        ("  Apple ", "apple"),
        ("\uff26\uff55\uff4c\uff4c", "full"),
        ("ﬁne", "fine"),
        ("É", "e"),
        ("İ", "i"),
        ("a \n b", "a b"),
        ("\u3000", " "),
        ("", ""),
    ],
)
def test_normalised_texts(text: str, key: str) -> None:
    assert normalizer()(text) == key
    assert normalize_plain(text) == key


def test_parquet_round_trip(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    path = tmp_path / "vocab.parquet"
    write_vocab(small_vocab, path)
    again = read_vocab(path)
    assert np.array_equal(again.lookup, small_vocab.lookup)
    assert (again.size, again.digest) == (small_vocab.size, small_vocab.digest)
    assert (again.texts, again.tokens, again.keys) == (
        small_vocab.texts,
        small_vocab.tokens,
        small_vocab.keys,
    )
    assert [again.texts[i] for i in range(len(again.texts))] == list(again.texts)
    assert again.keys[2:5] == small_vocab.keys[2:5]
    assert again.keys != small_vocab.tokens
    assert again.special_ids == small_vocab.special_ids
    assert again.tokenizer_digest == small_vocab.tokenizer_digest
    first = path.read_bytes()
    write_vocab(small_vocab, path, force=True)
    assert path.read_bytes() == first


def test_the_map_alone_is_the_same_map(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    path = tmp_path / "vocab.parquet"
    write_vocab(small_vocab, path)
    alone = read_map(path)
    assert np.array_equal(alone.lookup, small_vocab.lookup)
    assert (alone.size, alone.digest) == (small_vocab.size, small_vocab.digest)


def test_columns_of_other_types_are_refused(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    path = tmp_path / "vocab.parquet"
    write_vocab(small_vocab, path)
    table = pq.read_table(path)
    index = table.column_names.index("compressed_id")
    texts = pa.array(["x"] * len(table))
    pq.write_table(table.set_column(index, "compressed_id", texts), path)
    with pytest.raises(ArtifactError, match="lacks columns of a vocabulary"):
        read_map(path)
    pq.write_table(table.drop_columns(["key"]), path)
    with pytest.raises(ArtifactError, match="lacks columns of a vocabulary"):
        read_vocab(path)


def test_parquet_keeps_holes(tmp_path: Path) -> None:
    wordpiece_tokenizer().save(str(tmp_path / "tokenizer.json"))
    vocab = compress_vocab(tmp_path)
    write_vocab(vocab, tmp_path / "v.parquet")
    assert np.array_equal(read_vocab(tmp_path / "v.parquet").lookup, vocab.lookup)


def test_a_changed_vocabulary_file_is_refused(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    path = tmp_path / "vocab.parquet"
    write_vocab(small_vocab, path)
    table = pq.read_table(path)
    ids = table["compressed_id"].to_pylist()
    ids[5], ids[6] = ids[6], ids[5]
    index = table.column_names.index("compressed_id")
    field = table.schema.field(index)
    changed = table.set_column(index, field, [pa.array(ids, field.type)])
    pq.write_table(changed, path)
    with pytest.raises(ArtifactError, match="digests differ"):
        read_vocab(path)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        (None, "is not a vocabulary written by engram"),
        (b"[]", "is not a vocabulary written by engram"),
        (json.dumps({"format": "engram-vocab", "version": 99}).encode(), "newer version"),
    ],
)
def test_foreign_parquet_files_are_refused(
    metadata, match: str, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    path = tmp_path / "vocab.parquet"
    write_vocab(small_vocab, path)
    schema = {} if metadata is None else {b"engram": metadata}
    pq.write_table(pq.read_table(path).replace_schema_metadata(schema), path)
    with pytest.raises(ArtifactError, match=match):
        read_vocab(path)


def test_not_parquet_and_missing(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ArtifactError, match="not a readable Parquet") as caught:
        read_vocab(tmp_path / "x.parquet")
    assert caught.value.hint == "give the file that engram compress-vocab wrote"
    with pytest.raises(InputError, match="not found"):
        read_vocab(tmp_path / "y.parquet")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is empty"),
        ("{not json", "not a tokenizer.json"),
        ("[]", "not a tokenizer.json"),
        ('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}', "empty vocab"),
    ],
)
def test_bad_tokenizers(content: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(VocabularyError, match=match):
        compress_vocab(tmp_path)


def test_a_folder_without_tokenizer_and_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"no tokenizer\.json"):
        compress_vocab(tmp_path)
    with pytest.raises(VocabularyError, match="not found"):
        compress_vocab(tmp_path / "nowhere.json")


def test_equal_sizes_are_not_equal_maps(small_vocab: CompressedVocab) -> None:
    lookup = small_vocab.lookup.copy()
    a, b = np.flatnonzero(small_vocab.group_sizes()[lookup] > 1)[[0, -1]]
    lookup[a], lookup[b] = lookup[b], lookup[a]
    other = CompressedVocab(
        lookup=lookup,
        size=small_vocab.size,
        texts=small_vocab.texts,
        tokens=small_vocab.tokens,
        keys=small_vocab.keys,
        special_ids=small_vocab.special_ids,
        tokenizer_digest=small_vocab.tokenizer_digest,
        source="changed",
    )
    difference = diff(small_vocab, other)
    assert not difference.equal
    assert difference.moved == 2
    assert {a, b} <= {entry[0] for entry in difference.regrouped}
    assert diff(small_vocab, small_vocab).equal
    assert other.digest != small_vocab.digest


def test_renumbered_groups_are_moved_but_not_regrouped(small_vocab: CompressedVocab) -> None:
    turned = ((small_vocab.lookup + 1) % small_vocab.size).astype(np.int32)
    other = CompressedVocab(
        lookup=turned,
        size=small_vocab.size,
        texts=small_vocab.texts,
        tokens=small_vocab.tokens,
        keys=small_vocab.keys,
        special_ids=small_vocab.special_ids,
        tokenizer_digest="",
        source="turned",
    )
    difference = diff(small_vocab, other)
    assert difference.moved == small_vocab.vocab_size
    assert difference.regrouped == ()


def test_largest_groups_come_first(deepseek_vocab: CompressedVocab) -> None:
    groups = largest_groups(deepseek_vocab, 5)
    sizes = [len(group.members) for group in groups]
    assert sizes == sorted(sizes, reverse=True)
    assert groups[0].key == " "
    assert sizes[0] == int(deepseek_vocab.group_sizes().max())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a\n\t\r", "␣a\\n\\t\\r"),
        ("\x00\u200b", "\\x00\\u{200b}"),
        ("e\u0301", "e\u0301"),
        ("\u0301", "\\u{301}"),
        ("\u00a0", "\\xa0"),
    ],
)
def test_every_character_is_visible(text: str, shown: str) -> None:
    assert readable(text) == shown


@pytest.mark.parametrize("lookup", [np.array([0, 2], np.int32), np.array([], np.int32)])
def test_maps_that_skip_ids_are_refused(lookup: np.ndarray) -> None:
    with pytest.raises(VocabularyError):
        CompressedVocab(
            lookup=lookup,
            size=3,
            texts=[""] * len(lookup),
            tokens=[""] * len(lookup),
            keys=[""] * len(lookup),
            special_ids=frozenset(),
            tokenizer_digest="",
            source="",
        )
