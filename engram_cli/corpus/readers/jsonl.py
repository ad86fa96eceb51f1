"""JSON lines in UTF-8: a line is an object, one of its fields the text of a document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from engram_cli.corpus.base import TEXT_FIELD, CorpusFile, CorpusOptions, Document, Reader
from engram_cli.corpus.labels import label_of
from engram_cli.corpus.opening import unpacked
from engram_cli.corpus.pieces import decode_whole, pieces
from engram_cli.errors import CorpusError

_MISSING = object()
_LONGEST = 2**30  # bytes of a line: some packed kilobytes would fill the memory otherwise
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A line that is a record: its number, the JSON text, the bytes of the file read for it."""

    number: int
    where: str
    source: str
    size: int

    def record(self) -> dict[str, Any]:
        """The object. Raises CorpusError."""
        return _parse(self.source, self.where)


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Document]:
    """The text of each line; blank lines and nulls hold no document. Raises CorpusError."""
    field = options.field or TEXT_FIELD
    for line in _lines(file, options):
        record = line.record()
        text = _text(record, field, line.where)
        label = None
        if options.label is not None:
            found = _value(record, options.label)
            label = label_of(None if found is _MISSING else found, options.label, line.where)
        text = _mend_surrogates(text, options, line.where) if "\\u" in line.source else text
        for index, piece in enumerate(pieces(text)):
            yield Document(
                file=file.name,
                place=f"line {line.number}",
                text=piece,
                first=index == 0,
                size=0 if index else line.size,
                label=label,
            )


def fields_until(
    file: CorpusFile, options: CorpusOptions, field: str
) -> Iterator[list[str] | None]:
    """The names in each record up to the first that has `field`, then None. Raises CorpusError."""
    for line in _lines(file, options):
        record = line.record()
        if _value(record, field) is not _MISSING:
            yield None
            return
        yield list(record)


def _lines(file: CorpusFile, options: CorpusOptions) -> Iterator[_Line]:
    """The lines that are not blank. Raises CorpusError."""
    offset = 0
    with unpacked(file) as (stream, spent):
        for number, line in enumerate(iter(partial(stream.readline, _LONGEST), b""), 1):
            where = f"{file.name}, line {number}"
            if len(line) == _LONGEST:
                raise CorpusError(f"{where} has {_LONGEST:,} bytes or more", "is it JSON lines?")
            body = line.removeprefix(_BOM) if number == 1 else line
            size = len(line)
            if not body.isspace():
                source = decode_whole(body, file.name, offset + size - len(body), options.errors)
                yield _Line(number=number, where=where, source=source, size=spent(size))
            offset += size


def gives_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Always."""
    return True


def _parse(source: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"{where} is not JSON: {error}",
            "each line must be one JSON object; for text that is not JSON use --format text",
        ) from None
    if not isinstance(record, dict):
        raise CorpusError(
            f"{where} holds a {type(record).__name__}, no JSON object",
            'each line must look like {"text": "..."}',
        )
    return record


def _value(record: dict[str, Any], field: str) -> Any:
    """The value of a field, dotted where nested, or `_MISSING`."""
    value: Any = record.get(field, _MISSING)
    if value is _MISSING:
        value = record
        for name in field.split("."):
            value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
    return value


def _text(record: dict[str, Any], field: str, where: str) -> str:
    value = _value(record, field)
    if value is _MISSING:
        names = ", ".join(list(record)[:8]) or "none"
        raise CorpusError(f"{where} has no field '{field}'", f"its fields: {names}; use --field")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(
            f"{where}: field '{field}' is a {type(value).__name__}, no text",
            "name the field that holds the text with --field",
        )
    return value


def _mend_surrogates(text: str, options: CorpusOptions, where: str) -> str:
    r"""Half of a \uD83D\uDE00 pair is no character, and no tokenizer takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if options.errors == "strict":
            raise CorpusError(
                f"{where}: character {error.start} of the text is half of a surrogate pair",
                "mend the line, or use --errors replace to read U+FFFD there",
            ) from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


READER = Reader(
    read=read,
    gives_text=gives_text,
    labels=True,
    fields_until=fields_until,
    uses=("field", "errors"),
)
