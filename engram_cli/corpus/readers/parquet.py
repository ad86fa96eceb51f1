"""Parquet: a column of texts, or a column of lists of token ids; a row is a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Item, Reader
from engram_cli.corpus.columns import (
    block,
    column_of,
    documents,
    field_of,
    is_text,
    label_field,
    type_of,
)
from engram_cli.corpus.labels import labels_of
from engram_cli.corpus.opening import opened
from engram_cli.corpus.sections import by_weight
from engram_cli.corpus.stamps import unchanged
from engram_cli.errors import CorpusError

_BATCH_BYTES = 2**23  # uncompressed, read at a time
_BATCH_ROWS = 2**16


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Item]:
    """The documents of a Parquet file; rows that are null hold none. Raises CorpusError."""
    with _opened(file) as parquet:
        field = field_of(parquet.schema_arrow, file, options)
        label = label_field(parquet.schema_arrow, file, options)
        texts = is_text(type_of(parquet.schema_arrow, field))
        groups = _groups(parquet, file)
        before = sum(_rows(parquet)[: groups.start])
        rows = max(sum(_rows(parquet)[groups.start : groups.stop]), 1)
        first = before
        wanted = [field] if label is None else [field, label]
        for batch in parquet.iter_batches(_batch_rows(parquet), groups, columns=wanted):
            # A row is worth its share of the file, as far as progress is concerned.
            places = (first - before, first - before + batch.num_rows)
            begin, end = ((file.size or 0) * row // rows for row in places)
            column = column_of(batch, field)
            labels = None
            if label is not None:
                labels = labels_of(column_of(batch, label), label, file.name)
            if texts:
                yield from documents(file, options, column, first, end - begin, labels)
            elif batch.num_rows:
                yield block(file, column, first, end - begin, labels)
            first += batch.num_rows


def gives_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Whether the column is of texts."""
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        return is_text(type_of(schema, field_of(schema, file, options)))


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """The file in sections of whole row groups."""
    with _opened(file) as parquet:
        return by_weight(file, _rows(parquet), size)


def _rows(parquet: pq.ParquetFile) -> list[int]:
    """The rows of each row group."""
    about = parquet.metadata
    return [max(int(about.row_group(at).num_rows), 0) for at in range(about.num_row_groups)]


def _groups(parquet: pq.ParquetFile, file: CorpusFile) -> range:
    """The row groups to read. Raises CorpusError when the file has changed since it was divided."""
    groups = range(parquet.metadata.num_row_groups)
    if file.section is None:
        return groups
    if file.section.end > len(groups):
        raise CorpusError(f"{file.name} has changed: {len(groups)} row groups", "run it again")
    return groups[file.section.begin : file.section.end]


@contextmanager
def _opened(file: CorpusFile) -> Iterator[pq.ParquetFile]:
    try:
        with ExitStack() as stack:
            # pyarrow reads a path by itself, without taking turns with our threads.
            source: Any = file.path
            if file.path is None:
                source = stack.enter_context(opened(file))
            else:
                stack.enter_context(unchanged(file))
            yield stack.enter_context(
                pq.ParquetFile(source, memory_map=False, pre_buffer=file.path is None)
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        reason = str(error).splitlines()[0]
        raise CorpusError(
            f"{file.name} cannot be read as Parquet: {reason}", "write the file again"
        ) from None


def _batch_rows(parquet: pq.ParquetFile) -> int:
    """How many rows hold about `_BATCH_BYTES`, the other columns counted too.

    The sizes of single columns are not asked for: in a damaged file pyarrow ends the program there.
    """
    about = parquet.metadata
    groups = (about.row_group(group) for group in range(about.num_row_groups))
    size = sum(max(int(group.total_byte_size), 0) for group in groups)
    mean = max(size // max(int(about.num_rows), 1), 1)
    return min(max(_BATCH_BYTES // mean, 1), _BATCH_ROWS)


READER = Reader(
    read=read, gives_text=gives_text, divide=divide, labels=True, uses=("field", "errors")
)
