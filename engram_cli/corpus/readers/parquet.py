"""Parquet: a column of texts, or a column of lists of token ids; a row is a document."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Item, Reader
from engram_cli.corpus.columns import block, column_of, documents, field_of, is_text, type_of
from engram_cli.corpus.opening import opened
from engram_cli.errors import CorpusError

_BATCH_BYTES = 2**23  # uncompressed, read at a time
_BATCH_ROWS = 2**16


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Item]:
    """The documents of a Parquet file; rows that are null hold none. Raises CorpusError."""
    with _opened(file) as parquet:
        field = field_of(parquet.schema_arrow, file, options)
        texts = is_text(type_of(parquet.schema_arrow, field))
        rows = max(parquet.metadata.num_rows, 1)
        first = 0
        for batch in parquet.iter_batches(_batch_rows(parquet), columns=[field]):
            # A row is worth its share of the file, as far as progress is concerned.
            begin, end = ((file.size or 0) * row // rows for row in (first, first + batch.num_rows))
            column = column_of(batch, field)
            if texts:
                yield from documents(file, options, column, first, end - begin)
            elif batch.num_rows:
                yield block(file, column, first, end - begin)
            first += batch.num_rows


def gives_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Whether the column is of texts."""
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        return is_text(type_of(schema, field_of(schema, file, options)))


@contextmanager
def _opened(file: CorpusFile) -> Iterator[pq.ParquetFile]:
    try:
        with ExitStack() as stack:
            # pyarrow reads a path by itself, without taking turns with our threads.
            source = stack.enter_context(opened(file)) if file.path is None else file.path
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


READER = Reader(read=read, gives_text=gives_text)
