"""Reads Parquet: a column of texts, or a column of lists of token ids; a row is a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Item, Reader, Signs
from engram_cli.corpus.byte_stream import opened
from engram_cli.corpus.columns import choose_columns, column_of, is_text, type_of
from engram_cli.corpus.partitions import by_weight
from engram_cli.corpus.stamps import unchanged
from engram_cli.errors import CorpusError

_BATCH_BYTES = 2**23  # uncompressed, read at a time
_BATCH_ROWS = 2**16
_LIST_ROWS = 2**7  # of token ids, of which a few bytes may hold any number of equal ones
_PLAIN_BYTES = 2**24  # the most that a batch takes whose rows may all be as long as their group


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Item]:
    """Yield the documents of a Parquet file; rows that are null hold none. Raises CorpusError."""
    with _opened(file) as (source, parquet):
        columns = choose_columns(parquet.schema_arrow, file, options)
        counts = _rows(parquet)
        groups = file.units(len(counts), "row groups")
        first = before = sum(counts[: groups.start])
        rows = max(sum(counts[groups.start : groups.stop]), 1)
        most = min(_batch_rows(parquet), _BATCH_ROWS if columns.texts else _LIST_ROWS)
        for batch in _batches(source, parquet, groups, columns.wanted, most):
            # A row is worth its share of the file, as far as progress is concerned.
            places = (first - before, first - before + batch.num_rows)
            begin, end = ((file.size or 0) * row // rows for row in places)
            column, labels = column_of(batch, columns.field), columns.labels(batch)
            yield from columns.items(column, first, end - begin, labels)
            first += batch.num_rows


def gives_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Return whether the column is of texts."""
    with _opened(file) as (_, parquet):
        return choose_columns(parquet.schema_arrow, file, options).texts


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """Divide the file into sections of whole row groups."""
    with _opened(file) as (_, parquet):
        return by_weight(file, _rows(parquet), size)


def _rows(parquet: pq.ParquetFile) -> list[int]:
    """Return the rows of each row group."""
    about = parquet.metadata
    return [max(int(about.row_group(at).num_rows), 0) for at in range(about.num_row_groups)]


def _batches(
    source: Any, parquet: pq.ParquetFile, groups: range, wanted: list[str], rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some groups, `rows` at a time, texts as dictionaries.

    A page of some bytes can hold any number of equal texts. Read as a dictionary they take what
    they take in the file; where pyarrow cannot do so, fewer rows are read at a time.
    """
    schema = parquet.schema_arrow
    coded = [name for name in wanted if is_text(type_of(schema, name))]
    with pq.ParquetFile(
        source,
        metadata=parquet.metadata,
        memory_map=False,
        pre_buffer=not isinstance(source, Path),
        read_dictionary=coded,
    ) as dictionaries:
        for group in groups:
            done = 0
            try:
                for batch in dictionaries.iter_batches(rows, [group], columns=wanted):
                    done += batch.num_rows
                    yield batch
                continue
            except OSError as error:
                if "DictAccumulator" not in str(error):
                    raise
            largest = max(int(parquet.metadata.row_group(group).total_byte_size), 1)
            few = min(max(_PLAIN_BYTES // largest, 1), rows)
            for batch in parquet.iter_batches(few, [group], columns=wanted):
                passed = min(done, batch.num_rows)
                done -= passed
                if passed < batch.num_rows:
                    yield batch.slice(passed)


@contextmanager
def _opened(file: CorpusFile) -> Iterator[tuple[Any, pq.ParquetFile]]:
    """Open a file: what pyarrow opens, a path or a stream, and the file that it opened."""
    try:
        with ExitStack() as stack:
            # pyarrow reads a path by itself, without taking turns with our threads.
            source: Any = file.path
            if file.path is None:
                source = stack.enter_context(opened(file))
            else:
                stack.enter_context(unchanged(file))
            parquet = pq.ParquetFile(source, memory_map=False, pre_buffer=file.path is None)
            yield source, stack.enter_context(parquet)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        reason = str(error).splitlines()[0]
        raise CorpusError(
            f"{file.name} cannot be read as Parquet: {reason}",
            "write the file again, or say what it holds with --format",
        ) from None


def _batch_rows(parquet: pq.ParquetFile) -> int:
    """Return how many rows hold about `_BATCH_BYTES`, the other columns counted too.

    The sizes of single columns are not read: in a damaged file pyarrow ends the program there.
    """
    about = parquet.metadata
    groups = (about.row_group(group) for group in range(about.num_row_groups))
    size = sum(max(int(group.total_byte_size), 0) for group in groups)
    mean = max(size // max(int(about.num_rows), 1), 1)
    return min(max(_BATCH_BYTES // mean, 1), _BATCH_ROWS)


READER = Reader(
    read=read,
    gives_text=gives_text,
    divide=divide,
    labels=True,
    uses=("field", "errors"),
    signs=Signs(magic=(b"PAR1",), suffixes=(".parquet",), certain=(".parquet",)),
)
