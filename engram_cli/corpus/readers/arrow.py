"""Arrow IPC, the file format (Feather too) and the stream format: a row is a document."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

import pyarrow as pa

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Item, Reader, Section
from engram_cli.corpus.byte_stream import length_of, opened
from engram_cli.corpus.columns import (
    blocks,
    column_of,
    documents,
    field_of,
    is_text,
    label_field,
    labels_of,
    top_of,
    type_of,
)
from engram_cli.corpus.partitions import by_weight
from engram_cli.corpus.sources import ARROW_MAGIC, ARROW_STREAM
from engram_cli.errors import CorpusError

_LARGE = 2**28  # bytes of a batch, that may be any
_RATIO = 32  # of what a larger one takes packed: text is packed to a third or a tenth
_CONTINUED = b"\xff\xff\xff\xff"
_DICTIONARY, _BATCH = 2, 3
_MOST_HEADER = 2**26


def check_batches(file: CorpusFile, stream: BinaryIO, begin: int) -> None:
    """Raise CorpusError for a batch that unpacks to far more than it takes in the file.

    `begin`: where the first message is. What is no message ends the search: pyarrow will say so.
    """
    stream.seek(begin)
    try:
        while (prefix := stream.read(8))[:4] == _CONTINUED:
            length = int.from_bytes(prefix[4:], "little", signed=True)
            if not 0 < length <= _MOST_HEADER:
                return
            buffers, body = _buffers(stream.read(length))
            at = stream.tell()
            unpacked = sum(_unpacked(stream, at + offset, size) for offset, size in buffers)
            if unpacked > max(_LARGE, _RATIO * body):
                raise CorpusError(
                    f"{file.name}: a record batch of {body:,} bytes decompresses to {unpacked:,}",
                    "write it again in smaller record batches",
                )
            stream.seek(at + body)
    except (struct.error, ValueError, OSError):
        return


def _unpacked(stream: BinaryIO, at: int, size: int) -> int:
    """What a buffer says of itself; -1 stands for one that is not packed."""
    if size < 8:
        return 0
    stream.seek(at)
    return max(int(struct.unpack("<q", stream.read(8))[0]), 0)


def _buffers(message: bytes) -> tuple[list[tuple[int, int]], int]:
    """The places and sizes of the packed buffers in a message's body, and the size of the body."""
    root = _Table(message, int(struct.unpack_from("<I", message)[0]))
    body = root.scalar(3, "<q")
    if body < 0:
        raise ValueError("a body of less than no bytes")
    kind = root.scalar(1, "<B")
    if kind not in (_DICTIONARY, _BATCH):
        return [], body
    batch = root.table(2)
    if kind == _DICTIONARY:
        batch = batch.table(1)
    if not batch.place(3):  # not packed
        return [], body
    begin = batch.follow(2)
    (count,) = struct.unpack_from("<I", message, begin)
    if 16 * count > len(message):
        raise ValueError("more buffers than there is room for")
    return [struct.unpack_from("<qq", message, begin + 4 + 16 * at) for at in range(count)], body


class _Table:
    """A table of FlatBuffers: its fields by their numbers."""

    def __init__(self, message: bytes, at: int) -> None:
        self._message = message
        self._at = at
        self._fields = at - int(struct.unpack_from("<i", message, at)[0])
        if self._fields < 0:
            raise ValueError("a table outside of the message")

    def place(self, number: int) -> int:
        """Where a field is, 0 where it is left out."""
        (size,) = struct.unpack_from("<H", self._message, self._fields)
        if 4 + 2 * number >= size:
            return 0
        (offset,) = struct.unpack_from("<H", self._message, self._fields + 4 + 2 * number)
        return self._at + offset if offset else 0

    def scalar(self, number: int, kind: str) -> int:
        """The value of a field, 0 where it is left out."""
        place = self.place(number)
        return int(struct.unpack_from(kind, self._message, place)[0]) if place else 0

    def follow(self, number: int) -> int:
        """Where the table or vector is that a field points to."""
        place = self.place(number)
        if not place:
            raise ValueError("a field is missing")
        return place + int(struct.unpack_from("<I", self._message, place)[0])

    def table(self, number: int) -> _Table:
        """The table that a field points to."""
        return _Table(self._message, self.follow(number))


_PART_BYTES = 2**22  # of the column, handed on at a time
_PART_ROWS = 2**16
_FIRST_MESSAGE = 8  # behind the magic of a file
_END_OF_STREAM = ARROW_STREAM + b"\x00\x00\x00\x00"


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Item]:
    """The documents of an Arrow file; rows that are null hold none. Raises CorpusError."""
    with _source(file) as source:
        schema = _open(source, None)[0].schema
        field = field_of(schema, file, options)
        texts = is_text(type_of(schema, field))
        label = label_field(schema, file, options)
        names = [name for name in (field, label) if name is not None]
        tops = {schema.names.index(top_of(schema, name)) for name in names}
        reader, batches = _open(source, pa.ipc.IpcReadOptions(included_fields=sorted(tops)))
        numbers = range(batches or 0)
        if file.section is not None:
            numbers = _section(file, file.section, batches)
            # How many rows lie before is not in the index.
            file = replace(file, name=f"{file.name}, from batch {numbers.start}")
        first = spent = 0
        for number in numbers if batches is not None else iter(int, 1):
            batch = _next(reader, None if batches is None else number)
            if batch is None:
                break
            done = source.tell()
            if batches is not None:
                done = (number + 1 - numbers.start) * (file.size or 0) // len(numbers)
            size, spent = done - spent, done
            labels = None
            if label is not None:
                labelled = column_of(batch, label)
                _validated(labelled)
                labels = labels_of(labelled, label, file.name)
            begin = first
            for column in _parts(column_of(batch, field)):
                own = None if labels is None else labels[first - begin :][: len(column)]
                if texts:
                    yield from documents(file, options, column, first, size, own)
                else:
                    yield from blocks(file, column, first, size, own)
                first += len(column)
                size = 0


def gives_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Whether the column is of texts."""
    with _source(file) as source:
        schema = _open(source, None)[0].schema
        return is_text(type_of(schema, field_of(schema, file, options)))


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """The file in sections of whole record batches; a stream has no index of them."""
    with _source(file) as source:
        _, batches = _open(source, None)
    return by_weight(file, [1] * (batches or 1), size)


def _section(file: CorpusFile, section: Section, batches: int | None) -> range:
    """The batches to read. Raises CorpusError when the file has changed since it was divided."""
    if batches is None or section.end > batches:
        raise CorpusError(f"{file.name} has changed: {batches} record batches", "run it again")
    return range(section.begin, section.end)


@contextmanager
def _source(file: CorpusFile) -> Iterator[Any]:
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(opened(file))
            length = length_of(file, stream)
            if stream.read(len(ARROW_STREAM)) == ARROW_STREAM:
                # pyarrow takes a stream that was cut between two batches for a whole one.
                stream.seek(max(length - len(_END_OF_STREAM), 0))
                if stream.read() != _END_OF_STREAM:
                    raise CorpusError(
                        f"{file.name} is truncated: the mark at the end of an Arrow stream is "
                        "missing",
                        "copy or write the file again",
                    )
                begin = 0
            else:
                begin = _FIRST_MESSAGE
            if file.path is not None and file.section is None:  # far away that takes long
                check_batches(file, stream, begin)
            local = None if file.path is None else pa.OSFile(str(file.path))
            yield stack.enter_context(local or pa.PythonFile(stream, "r"))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CorpusError(
            f"{file.name} cannot be read as Arrow: {reason}", "write the file again"
        ) from None


def _open(source: Any, options: Any) -> tuple[Any, int | None]:
    """A reader from the beginning, and how many batches it has, None for a stream."""
    source.seek(0)
    head = source.read(len(ARROW_MAGIC))
    source.seek(0)
    if head == ARROW_MAGIC:
        reader = pa.ipc.open_file(source, options=options)
        return reader, int(reader.num_record_batches)
    return pa.ipc.open_stream(source, options=options), None


def _next(reader: Any, number: int | None) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch() if number is None else reader.get_batch(number)
    except StopIteration:
        return None


def _parts(column: pa.Array) -> Iterator[pa.Array]:
    """A column in parts that are worth a block."""
    column = _validated(column)
    rows = min(max(_PART_BYTES * len(column) // max(column.nbytes, 1), 1), _PART_ROWS)
    for begin in range(0, len(column), rows):
        yield column.slice(begin, rows)


def _validated(column: pa.Array) -> pa.Array:
    """The column, its offsets checked before they are used, texts as bytes.

    Whether they are UTF-8 is found out, and said, for each row.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(column.indices, _validated(column.dictionary))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary())
    elif pa.types.is_string_view(kind):
        column = column.view(pa.binary_view())
    column.validate(full=True)
    return column


READER = Reader(
    read=read, gives_text=gives_text, divide=divide, labels=True, uses=("field", "errors")
)
