"""Turns bytes into texts of bounded length, and JSON into values.

A document longer than `PIECE` characters is tokenised piece by piece, so that memory does not grow
with it. Pieces end at a line end that a character other than white space follows: there the
tokenizers in use end a token anyway. Where a piece has none, it ends at white space, then before a
punctuation mark, and inside a word only where `PIECE` characters have no white space and the last
of them no mark.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, BinaryIO

from engram_cli.corpus.base import Cuts, Document, Errors
from engram_cli.errors import CorpusError, UndecodableError

PIECE = 2**18  # characters
_LOOK_FOR_MARK = 2**13  # characters from the end of a piece: a loop in Python, 1 ms
_LONGEST_CLUSTER = 64  # marks that belong to one letter; more are cut
_CHUNK = 2**20  # bytes read at a time
_BOM = "\ufeff"
MOST_DESCRIPTION = 2**28  # bytes of memory: an MDS index of 100,000 shards
_CONTINUED = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character
_WIDE = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")  # characters of four bytes in a str
_CONTAINER, _VALUE = 64, 40  # bytes of an empty object, and of a number in a list


def as_many(length: int) -> int:
    """Return `length`: the bytes of the file read for so many where nothing is compressed."""
    return length


def decoded(
    stream: BinaryIO, name: str, errors: Errors, spent: Callable[[int], int] = as_many
) -> Iterator[tuple[str, int]]:
    """Yield the text of a stream in chunks, each with the bytes read for it; a BOM is dropped.

    `spent` turns the bytes just taken from the stream into bytes of the file. Raises
    UndecodableError with the line and the byte offset of what is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    offset, line = 0, 1
    while True:
        chunk = stream.read(_CHUNK)
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise _not_utf8(f"{name}, line {line}", error, offset - held) from None
        if offset == 0:
            text = text.removeprefix(_BOM)
        offset += len(chunk)
        line += text.count("\n")
        if text or chunk:
            yield text, spent(len(chunk))
        if not chunk:
            return


def decode_whole(raw: bytes, where: str, offset: int, errors: Errors) -> str:
    """Decode `raw`, which begins at byte `offset` of `where`. Raises UndecodableError."""
    try:
        return raw.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error, offset) from None


def _not_utf8(where: str, error: UnicodeDecodeError, offset: int) -> UndecodableError:
    return UndecodableError(
        f"{where}: byte {offset + error.start} is not UTF-8 (0x{error.object[error.start]:02X})",
        "convert it, leave it out, or use --errors replace to read U+FFFD there",
    )


def split_documents(
    chunks: Iterable[tuple[str, int]], separator: str | None
) -> Iterator[tuple[str, bool, int]]:
    """Yield the documents of a text in pieces: (text, whether it begins one, bytes read for it)."""
    held, first, size = "", True, 0
    for chunk, read in chunks:
        held += chunk
        size += read
        if separator is not None:
            *whole, held = held.split(separator)
            for document in whole:
                for piece in pieces(document):
                    yield piece, first, size
                    first, size = False, 0
                first = True
        # What may be the beginning of a separator stays in hand.
        spare = 0 if separator is None else len(separator) - 1
        while len(held) - spare > PIECE:
            at = cut(held, PIECE)
            yield held[:at], first, size
            held, first, size = held[at:], False, 0
    if held or size:
        for piece in pieces(held):
            yield piece, first, size
            first, size = False, 0


def whole_document(
    file: str, place: str, text: str, size: int, label: str | None = None
) -> Iterator[Document]:
    """Yield a document that is in memory in pieces; `size`: bytes of the file read for it."""
    for index, piece in enumerate(pieces(text)):
        yield Document(
            file=file,
            place=place,
            text=piece,
            first=index == 0,
            size=0 if index else size,
            label=label,
        )


def pieces(text: str) -> Iterator[str]:
    """Yield `text` itself, or in pieces of at most `PIECE` characters."""
    begin = 0
    while len(text) - begin > PIECE:
        end = begin + cut(text[begin : begin + PIECE + 1], PIECE)
        yield text[begin:end]
        begin = end
    yield text[begin:] if begin else text


def cut(text: str, limit: int) -> int:
    """Return where to cut `text`, which is longer than `limit`: at a line end in its second half,
    before a space there, at either in its first half, before other white space, before a
    punctuation mark, or inside a word; the first of these that it has."""
    for least in (limit // 2, 1):
        end = limit
        while (end := text.rfind("\n", least, end)) >= 0:
            if not text[end + 1].isspace():
                return end + 1
        if (end := text.rfind("\n", least, limit)) >= 0:
            return end + 1
        if (end := text.rfind(" ", least, limit)) >= 0:
            return end
    end = max(text.rfind(space, 1, limit) for space in "\t\r\f\v\u00a0\u3000")
    return end if end >= 0 else _inside(text, limit)


def _inside(text: str, limit: int) -> int:
    """Return where to cut a text without white space: before a mark that follows a letter or digit,
    else at `limit`, but not between a letter and the marks on it."""
    for end in range(limit, max(limit - _LOOK_FOR_MARK, limit // 2), -1):
        if _before_mark(text[end - 1], text[end]):
            return end
    for end in range(limit, max(limit - _LONGEST_CLUSTER, limit // 2), -1):
        if not (_joins(text[end]) or text[end - 1] == "\u200d"):
            return end
    return limit


def _before_mark(letter: str, mark: str) -> bool:
    return unicodedata.category(mark)[0] in "PS" and unicodedata.category(letter)[0] in "LN"


def _joins(character: str) -> bool:
    return character == "\u200d" or unicodedata.category(character)[0] == "M"


def cut_between(before: str, after: str) -> Cuts:
    """Return one cut, of the kind of that between two pieces of a document."""
    if before.endswith("\n"):
        return Cuts(line_ends=1)
    if before[-1:].isspace() or after[:1].isspace():
        return Cuts(spaces=1)
    if before and after and _before_mark(before[-1], after[0]):
        return Cuts(marks=1)
    return Cuts(words=1)


def loads(source: str | bytes) -> Any:
    """Parse JSON; an integer with more digits than Python converts becomes a Decimal.

    Raises ValueError, RecursionError.
    """
    try:
        return json.loads(source)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # the limit of digits, which costs a call for each integer
        return json.loads(source, parse_int=_integer)


def _integer(digits: str) -> int | Decimal:
    most = sys.get_int_max_str_digits()
    return Decimal(digits) if most and len(digits.lstrip("-")) > most else int(digits)


def check_size(raw: bytes, name: str) -> None:
    """Raise CorpusError for a description of a data set that would take too much memory."""
    size = sum(decoded_size(raw))
    if size > MOST_DESCRIPTION:
        raise CorpusError(
            f"{name}, of {len(raw):,} bytes, may take {size:,} bytes of memory; the most is "
            f"{MOST_DESCRIPTION:,}",
            "divide the data set",
        )


def decoded_size(raw: bytes) -> tuple[int, int]:
    """Return the most bytes that JSON takes as text and, in addition to that, as values.

    Both are upper bounds: a bracket or a comma may be part of a text.
    """
    characters = len(raw) if raw.isascii() else len(raw.translate(None, _CONTINUED))
    width = 4 if _WIDE.search(raw) else 1 if raw.isascii() and b"\\u" not in raw else 2
    containers = raw.count(b"{") + raw.count(b"[")
    return characters * width, containers * _CONTAINER + raw.count(b",") * _VALUE
