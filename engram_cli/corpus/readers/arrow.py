"""Reads Arrow IPC, the file format (Feather too) and the stream format: a row is a document.

pyarrow decompresses a record batch as a whole: a file of some kilobytes may hold one of gigabytes.
What the batches of a file take is found from their headers first, by reading the messages of the
IPC format as far as they name their buffers (Message.fbs, FlatBuffers).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

import pyarrow as pa

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Item, Look, Reader, Signs
from engram_cli.corpus.byte_stream import length_of, opened
from engram_cli.corpus.columns import choose_columns, column_of, labels_of, top_of
from engram_cli.corpus.partitions import by_weight
from engram_cli.errors import CorpusError

_MAGIC = b"ARROW1"
_CONTINUED = b"\xff\xff\xff\xff"  # begins each message, and so a stream
_END_OF_STREAM = _CONTINUED + b"\x00\x00\x00\x00"
_FIRST_MESSAGE = 8  # behind the magic of a file
_PART_BYTES = 2**22  # of the column, handed on at a time
_PART_ROWS = 2**16
_LARGE = 2**28  # decompressed bytes that any batch may take; a larger one at most
_RATIO = 32  # times its compressed size: text is compressed to a third or a tenth
_DICTIONARY, _BATCH = 2, 3  # kinds of messages
_MOST_HEADER = 2**26


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Item]:
    """Yield the documents of an Arrow file; rows that are null hold none. Raises CorpusError."""
    with _source(file) as source:
        schema = _open(source, None)[0].schema
        columns = choose_columns(schema, file, options)
        tops = {schema.names.index(top_of(schema, name)) for name in columns.wanted}
        reader, batches = _open(source, pa.ipc.IpcReadOptions(included_fields=sorted(tops)))
        numbers = file.units(batches or 0, "record batches")
        if file.section is not None:
            # How many rows lie before is not in the index.
            file = replace(file, name=f"{file.name}, from batch {numbers.start}")
            columns = replace(columns, file=file)
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
            if columns.label is not None:
                labelled = column_of(batch, columns.label)
                _validated(labelled)
                labels = labels_of(labelled, columns.label, file.name)
            begin = first
            for part in _parts(column_of(batch, columns.field)):
                part_labels = labels and labels[first - begin :][: len(part)]
                yield from columns.items(part, first, size, part_labels)
                first += len(part)
                size = 0


def gives_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Return whether the column is of texts."""
    with _source(file) as source:
        return choose_columns(_open(source, None)[0].schema, file, options).texts


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """Divide the file into sections of whole record batches; a stream has no index of them."""
    with _source(file) as source:
        _, batches = _open(source, None)
    return by_weight(file, [1] * (batches or 1), size)


def recognises(look: Look) -> bool:
    """Return whether a file is an Arrow stream; bare token ids may begin with these bytes, too."""
    if look.head.startswith(b"FEA1"):
        raise CorpusError(
            f"{look.name} is Feather version 1", "write it again with pyarrow.feather"
        )
    return look.head.startswith(_CONTINUED) and not look.bare


@contextmanager
def _source(file: CorpusFile) -> Iterator[Any]:
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(opened(file))
            length = length_of(file, stream)
            if stream.read(len(_CONTINUED)) == _CONTINUED:
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
                _check_batches(file, stream, begin)
            local = None if file.path is None else pa.OSFile(str(file.path))
            yield stack.enter_context(local or pa.PythonFile(stream, "r"))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CorpusError(
            f"{file.name} cannot be read as Arrow: {reason}",
            "write the file again, or say what it holds with --format",
        ) from None


def _open(source: Any, options: Any) -> tuple[Any, int | None]:
    """Return a reader from the beginning, and the number of batches, None for a stream."""
    source.seek(0)
    head = source.read(len(_MAGIC))
    source.seek(0)
    if head == _MAGIC:
        reader = pa.ipc.open_file(source, options=options)
        return reader, int(reader.num_record_batches)
    return pa.ipc.open_stream(source, options=options), None


def _next(reader: Any, number: int | None) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch() if number is None else reader.get_batch(number)
    except StopIteration:
        return None


def _parts(column: pa.Array) -> Iterator[pa.Array]:
    """Yield a column in parts that are worth a block."""
    column = _validated(column)
    rows = min(max(_PART_BYTES * len(column) // max(column.nbytes, 1), 1), _PART_ROWS)
    for begin in range(0, len(column), rows):
        yield column.slice(begin, rows)


def _validated(column: pa.Array) -> pa.Array:
    """Return the column with its offsets checked before they are used, texts as bytes.

    Whether they are UTF-8 is checked for each row.
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


def _check_batches(file: CorpusFile, stream: BinaryIO, begin: int) -> None:
    """Raise CorpusError for a batch that decompresses to far more than it takes in the file.

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
    """Return the bytes that a buffer says it takes; -1 stands for one that is not compressed."""
    if size < 8:
        return 0
    stream.seek(at)
    return max(int(struct.unpack("<q", stream.read(8))[0]), 0)


def _buffers(message: bytes) -> tuple[list[tuple[int, int]], int]:
    """Return (place, size) of the compressed buffers in a message's body, and the body's size."""
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
    if not batch.place(3):  # not compressed
        return [], body
    begin = batch.follow(2)
    (count,) = struct.unpack_from("<I", message, begin)
    if 16 * count > len(message):
        raise ValueError("more buffers than there is room for")
    return [struct.unpack_from("<qq", message, begin + 4 + 16 * at) for at in range(count)], body


class _Table:
    """The fields of a FlatBuffers table, by their numbers."""

    def __init__(self, message: bytes, at: int) -> None:
        self._message = message
        self._at = at
        self._fields = at - int(struct.unpack_from("<i", message, at)[0])
        if self._fields < 0:
            raise ValueError("a table outside of the message")

    def place(self, number: int) -> int:
        """Return where a field is, 0 where it is left out."""
        (size,) = struct.unpack_from("<H", self._message, self._fields)
        if 4 + 2 * number >= size:
            return 0
        (offset,) = struct.unpack_from("<H", self._message, self._fields + 4 + 2 * number)
        return self._at + offset if offset else 0

    def scalar(self, number: int, kind: str) -> int:
        place = self.place(number)
        return int(struct.unpack_from(kind, self._message, place)[0]) if place else 0

    def follow(self, number: int) -> int:
        place = self.place(number)
        if not place:
            raise ValueError("a field is missing")
        return place + int(struct.unpack_from("<I", self._message, place)[0])

    def table(self, number: int) -> _Table:
        return _Table(self._message, self.follow(number))


READER = Reader(
    read=read,
    gives_text=gives_text,
    divide=divide,
    labels=True,
    uses=("field", "errors"),
    signs=Signs(magic=(_MAGIC,), suffixes=(".arrow", ".feather"), recognises=recognises),
)
