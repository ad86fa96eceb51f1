"""Reads JSON lines in UTF-8: a line is an object, one of its fields the text of a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from engram_cli.corpus.base import (
    LONGEST_LABEL,
    NO_LABEL,
    TEXT_FIELD,
    CorpusFile,
    CorpusOptions,
    Document,
    Reader,
    Signs,
)
from engram_cli.corpus.byte_stream import open_decompressed
from engram_cli.corpus.text import decode_whole, decoded_size, loads, whole_document
from engram_cli.errors import CorpusError, UndecodableError

_MISSING = object()
# Of a line, whose text is whole in memory three times while it is parsed.
_LONGEST = 2**26  # bytes of the line, and of its text in memory
_LONG = 2**22  # bytes of lines that are weighed
_MOST_VALUES = 2**28  # bytes of numbers, lists and objects
_BOM = b"\xef\xbb\xbf"
_HINT = "split the document; --format text reads files of any size"


@dataclass(slots=True, kw_only=True)
class _Line:
    """A line that is a record: its number, the JSON text, the bytes of the file read for it."""

    number: int
    where: str
    source: str
    size: int
    escaped: bool = False

    def record(self) -> dict[str, Any]:
        """Return the object and drop the JSON text. Raises CorpusError."""
        source, self.source = self.source, ""
        self.escaped = "\\u" in source
        return _parse(source, self.where)


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Document]:
    """Yield the text of each line; blank lines and nulls hold none. Raises CorpusError."""
    # What is wrong with a line is raised while the file is open: it may have changed.
    with open_decompressed(file) as (stream, spent):
        for line in _lines(file, options, stream, spent):
            yield from _documents(file, options, line)


def _documents(file: CorpusFile, options: CorpusOptions, line: _Line) -> Iterator[Document]:
    record = line.record()
    text = _text(record, options.field or TEXT_FIELD, line.where)
    label = None
    if options.label is not None:
        found = _value(record, options.label)
        label = _label(None if found is _MISSING else found, options.label, line.where)
    del record
    text = _without_surrogates(text, options, line.where) if line.escaped else text
    yield from whole_document(file.name, f"line {line.number}", text, line.size, label)


def fields_until(
    file: CorpusFile, options: CorpusOptions, field: str
) -> Iterator[list[str] | None]:
    """Yield the names in each record up to the first that has `field`, then None."""
    with open_decompressed(file) as (stream, spent):
        for line in _lines(file, options, stream, spent):
            record = line.record()
            if _value(record, field) is not _MISSING:
                yield None
                return
            yield list(record)


def _lines(
    file: CorpusFile, options: CorpusOptions, stream: BinaryIO, spent: Callable[[int], int]
) -> Iterator[_Line]:
    """Yield the lines that are not blank. Raises CorpusError."""
    offset = number = 0
    while line := stream.readline(_LONGEST):
        number += 1
        where, size = f"{file.name}, line {number}", len(line)
        if size == _LONGEST:
            raise CorpusError(f"{where} has {_LONGEST:,} bytes or more", _HINT)
        if size > _LONG:
            _weigh(line, where)
        if number == 1:
            line = line.removeprefix(_BOM)
        begin, offset = offset + size - len(line), offset + size
        if not line.isspace():
            source = decode_whole(line, where, begin, options.errors)
            del line  # nothing is held here while the line is worked on
            found = [_Line(number=number, where=where, source=source, size=spent(size))]
            del source
            yield found.pop()


def _weigh(line: bytes, where: str) -> None:
    """Raise CorpusError for a line that would take too much memory."""
    for what, size, most in zip(
        ("text", "values"), decoded_size(line), (_LONGEST, _MOST_VALUES), strict=True
    ):
        if size > most:
            raise CorpusError(
                f"{where}, of {len(line):,} bytes, may take {size:,} bytes of memory as {what}; "
                f"the most is {most:,}",
                _HINT,
            )


def _parse(source: str, where: str) -> dict[str, Any]:
    try:
        record = loads(source)
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"{where} is not JSON: {error}",
            "each line must be one JSON object; for text that is not JSON use --format text",
        ) from None
    if not isinstance(record, dict):
        raise CorpusError(
            f"{where} holds a {type(record).__name__}, not a JSON object",
            'each line must look like {"text": "..."}',
        )
    return record


def _value(record: dict[str, Any], field: str) -> Any:
    """Return the value of a field, dotted where nested, or `_MISSING`."""
    value: Any = record.get(field, _MISSING)
    if value is _MISSING:
        value = record
        for name in field.split("."):
            value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
    return value


def _label(value: Any, field: str, where: str) -> str:
    """Return the label that a JSON value is. Raises CorpusError for a list or an object."""
    if value is None:
        return NO_LABEL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        raise CorpusError(
            f"{where}: field '{field}' is a {type(value).__name__}, not a label",
            "group by a field of texts or numbers",
        )
    # Half a surrogate pair, which JSON can spell, is no text.
    return str(value).encode("utf-8", "replace").decode()[:LONGEST_LABEL] or NO_LABEL


def _text(record: dict[str, Any], field: str, where: str) -> str:
    value = _value(record, field)
    if value is _MISSING:
        names = ", ".join(list(record)[:8]) or "none"
        raise CorpusError(f"{where} has no field '{field}'", f"its fields: {names}; use --field")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(
            f"{where}: field '{field}' is a {type(value).__name__}, not text",
            "name the field that holds the text with --field",
        )
    return value


def _without_surrogates(text: str, options: CorpusOptions, where: str) -> str:
    r"""Replace half of a \uD83D\uDE00 pair: it is no character, and no tokenizer takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if options.errors == "strict":
            raise UndecodableError(
                f"{where}: character {error.start} of the text is half of a surrogate pair",
                "fix the line, or use --errors replace to read U+FFFD there",
            ) from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


READER = Reader(
    read=read,
    labels=True,
    fields_until=fields_until,
    uses=("field", "errors"),
    # Folders are not searched for .json: it is mostly configuration there, not JSON lines.
    signs=Signs(
        suffixes=(".jsonl", ".ndjson", ".json"),
        unsearched=(".json",),
        certain=(".jsonl", ".ndjson", ".json"),
        streams=True,
    ),
)
