"""Arrow IPC, the file format (Feather too) and the stream format: a row is a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa

from engram_cli.corpus.arrow_size import check_batches
from engram_cli.corpus.base import CorpusFile, CorpusOptions, Item, Reader, Section
from engram_cli.corpus.byte_stream import length_of, opened
from engram_cli.corpus.columns import (
    blocks,
    column_of,
    documents,
    field_of,
    is_text,
    label_field,
    top_of,
    type_of,
)
from engram_cli.corpus.detect import ARROW_MAGIC, ARROW_STREAM
from engram_cli.corpus.labels import labels_of
from engram_cli.corpus.sections import by_weight
from engram_cli.errors import CorpusError

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
