"""Decoding that names the bad byte, and cutting that loses nothing."""

from __future__ import annotations

import io
import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_cli.corpus import text as corpus_text
from engram_cli.corpus.base import Cuts, ReadPosition
from engram_cli.corpus.text import cut, cut_between, decoded, split_documents
from engram_cli.errors import CorpusError

TEXT = st.text(alphabet="ab é🍎\n\t \r|", max_size=300)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_text, "PIECE", 20)
    monkeypatch.setattr(corpus_text, "_CHUNK", 7)


def chunked(text: str, size: int) -> list[tuple[str, int]]:
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    return [(part, len(part)) for part in parts]


@given(text=TEXT, size=st.integers(1, 50))
def test_documents_do_not_depend_on_chunks_and_lose_nothing(text: str, size: int) -> None:
    found: list[str] = []
    for piece, first, _ in split_documents(chunked(text, size), "||"):
        assert len(piece) <= corpus_text.PIECE
        if first:
            found.append("")
        found[-1] += piece
    assert found == text.split("||") or (
        not text.split("||")[-1] and text.split("||")[:-1] == found
    )


@given(text=TEXT, size=st.integers(1, 50))
def test_a_text_without_a_separator_is_one_document(text: str, size: int) -> None:
    found = list(split_documents(chunked(text, size), None))
    assert "".join(piece for piece, _, _ in found) == text
    assert sum(read for _, _, read in found) == len(text)
    assert [first for _, first, _ in found] == [index == 0 for index in range(len(found))]


@given(text=TEXT)
def test_whole_texts_are_cut_as_files_are(text: str) -> None:
    assert "".join(corpus_text.pieces(text)) == text
    assert all(len(piece) <= corpus_text.PIECE for piece in corpus_text.pieces(text))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("aaaaaaaaaaaa\nbbb\n  ccccccc", 13),  # not before the indented line
        ("aaaaaaaaaaaa\n   bbbbbbbbbbb", 13),  # only indented lines: at a line end all the same
        ("aaaaaaaaaaaa bbbbbbbbbbbbbb", 12),  # no line end: before a space
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaa", 20),  # nothing but a word
        ("aaa\naaaaaaaa aaaaaaaaaaaaaa", 12),  # a space in the second half, not an early line end
        ("a\naaa aaaaaaaaaaaaaaaaaaaaa", 2),  # an early line end, not inside a word
        ("aaa aaaaaaaaaaaaaaaaaaaaaaa", 3),
        ("aaaaaa\taaa\u3000aaaaaaaaaaaaaaa", 10),  # other white space
        ("日本語日本語日本語日本。日本、日本語日本語日本語", 14),  # before a punctuation mark
        ("aaaaaaaaaaaaaaa.aa,aaaaaaaa", 18),
        ("aaa,aaaaaaaaaaaaaaaaaaaaaaa", 20),  # an early mark: pieces would be short
        ("aaaaaaaaaaaaaaaaaae\u0301\u0302aaaaa", 18),  # not between a letter and its marks
        ("aaaaaaaaaaaaaaaaaa\U0001f469\u200d\U0001f467aaaa", 18),
    ],
)
def test_where_long_texts_are_cut(text: str, at: int) -> None:
    assert cut(text, 20) == at


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("aaaaaaaaaaaa\nbbb\n  ccccccc", Cuts(line_ends=1)),
        ("aaaaaaaaaaaaaaa bbbbbbbbbbb", Cuts(spaces=1)),
        ("aaaaaaaaaaaaa\tbbbbbbbbbbbbb", Cuts(spaces=1)),
        ("日本語日本語日本語日本。日本語日本語日本語日本語", Cuts(marks=1)),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaa", Cuts(words=1)),
    ],
)
def test_the_kind_of_a_cut_is_known_from_its_sides(text: str, kind: Cuts) -> None:
    assert cut_between(*corpus_text.pieces(text)) == kind


def test_cuts_are_said_by_kind() -> None:
    cuts = Cuts(line_ends=1, spaces=1_060) + Cuts(words=7) + Cuts(spaces=1)
    assert str(cuts) == "1 line end, 1,061 spaces and 7 places inside words"
    assert cuts.total == 1_069
    assert str(Cuts(marks=2)) == "2 punctuation marks"


def test_a_position_is_stored_with_its_cuts() -> None:
    position = ReadPosition(file=3, items=5, cuts=Cuts(line_ends=1, words=2), open=True)
    stored = json.loads(json.dumps(asdict(position)))
    assert ReadPosition.read(stored) == position
    for bad in (
        3,
        {"line_ends": 1},
        stored["cuts"] | {"words": -1},
        stored["cuts"] | {"words": 1.0},
    ):
        with pytest.raises(ValueError, match=r"names no place|has the words"):
            ReadPosition.read(stored | {"cuts": bad})


@given(text=TEXT)
def test_decoding_gives_the_text_and_counts_the_bytes(text: str) -> None:
    raw = text.encode()
    found = list(decoded(io.BytesIO(raw), "x", "strict"))
    assert "".join(part for part, _ in found) == text
    assert sum(size for _, size in found) == len(raw)


def test_a_leading_byte_order_mark_is_dropped() -> None:
    found = decoded(io.BytesIO(b"\xef\xbb\xbfabc\xef\xbb\xbf"), "x", "strict")
    assert "".join(part for part, _ in found) == "abc\ufeff"


@given(before=TEXT, after=TEXT, bad=st.sampled_from([b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0"]))
def test_the_byte_that_is_not_utf8_is_named(before: str, after: str, bad: bytes) -> None:
    offset = len(before.encode())
    raw = before.encode() + bad + b"a" + after.encode()
    where = f"x, line {before.count(chr(10)) + 1}: byte {offset} is not UTF-8 "
    with pytest.raises(CorpusError, match=rf"^{where}\(0x{bad[0]:02X}\)"):
        list(decoded(io.BytesIO(raw), "x", "strict"))
    replaced = "".join(part for part, _ in decoded(io.BytesIO(raw), "x", "replace"))
    assert replaced == raw.decode("utf-8", "replace").removeprefix("\ufeff")


def test_lines_are_counted_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_text, "_CHUNK", 5)
    raw = "é\nzwölf\n\nx".encode() + b"\n\xe9"
    with pytest.raises(CorpusError, match=r"x, line 5: byte 13 is not UTF-8 \(0xE9\)"):
        list(decoded(io.BytesIO(raw), "x", "strict"))


def test_a_character_cut_off_at_the_end_is_named() -> None:
    with pytest.raises(CorpusError, match="byte 9 is not UTF-8"):
        list(decoded(io.BytesIO(b"abcdefghi\xe2\x82"), "x", "strict"))
