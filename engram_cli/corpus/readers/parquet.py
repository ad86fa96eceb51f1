"""Parquet: a column of texts, or a column of lists of token ids; a row is a document."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engram_cli.corpus.base import (
    IDS_FIELD,
    TEXT_FIELD,
    CorpusFile,
    CorpusOptions,
    Document,
    Item,
    Reader,
    TokenBlock,
)
from engram_cli.corpus.pieces import pieces
from engram_cli.errors import CorpusError

_BATCH_BYTES = 2**22  # of the column, uncompressed, read at a time
_BATCH_ROWS = 2**16


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Item]:
    """The documents of a Parquet file; rows that are null hold none. Raises CorpusError."""
    with _opened(file) as parquet:
        field = _field(parquet, file, options)
        texts = _is_text(_type(parquet, field))
        rows = max(parquet.metadata.num_rows, 1)
        first = 0
        for batch in parquet.iter_batches(_batch_rows(parquet, field), columns=[field]):
            # A row is worth its share of the file, as far as progress is concerned.
            begin, end = ((file.size or 0) * row // rows for row in (first, first + batch.num_rows))
            column = _column(batch, field)
            if texts:
                yield from _documents(file, options, column, first, end - begin)
            elif batch.num_rows:
                yield _block(file, column, first, end - begin)
            first += batch.num_rows


def gives_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Whether the column is of texts."""
    with _opened(file) as parquet:
        return _is_text(_type(parquet, _field(parquet, file, options)))


@contextmanager
def _opened(file: CorpusFile) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(file.path, memory_map=False, pre_buffer=False) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(
            f"{file.name} cannot be read as Parquet: {reason}", "write the file again"
        ) from None


def _field(parquet: pq.ParquetFile, file: CorpusFile, options: CorpusOptions) -> str:
    wanted = [options.field] if options.field else [TEXT_FIELD, IDS_FIELD]
    for field in wanted:
        found = _type(parquet, field)
        if found is not None:
            if _is_text(found) or _is_ids(found):
                return field
            raise CorpusError(
                f"{file.name}: column '{field}' is {found}, neither text nor lists of integers",
                "name the column with --field",
            )
    names = ", ".join(parquet.schema_arrow.names[:8])
    raise CorpusError(
        f"{file.name} has no column '{' or '.join(wanted)}'", f"its columns: {names}; use --field"
    )


def _type(parquet: pq.ParquetFile, field: str) -> pa.DataType | None:
    schema = parquet.schema_arrow
    if field in schema.names:
        return schema.field(field).type
    found: Any = pa.struct(list(schema))
    for name in field.split("."):
        if not pa.types.is_struct(found) or found.get_field_index(name) < 0:
            return None
        found = found.field(name).type
    return found


def _is_text(found: pa.DataType | None) -> bool:
    if found is not None and pa.types.is_dictionary(found):
        found = found.value_type
    return found is not None and (
        pa.types.is_string(found)
        or pa.types.is_large_string(found)
        or pa.types.is_string_view(found)
    )


def _is_ids(found: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(found) for is_list in lists) and pa.types.is_integer(found.value_type)


def _batch_rows(parquet: pq.ParquetFile, field: str) -> int:
    """How many rows hold about `_BATCH_BYTES` of the column."""
    size: int = 0
    for group in range(parquet.metadata.num_row_groups):
        columns = parquet.metadata.row_group(group)
        for index in range(columns.num_columns):
            column = columns.column(index)
            if column.path_in_schema == field or column.path_in_schema.startswith(field + "."):
                size += int(column.total_uncompressed_size)
    mean = max(size // max(int(parquet.metadata.num_rows), 1), 1)
    return min(max(_BATCH_BYTES // mean, 1), _BATCH_ROWS)


def _column(batch: pa.RecordBatch, field: str) -> pa.Array:
    if field in batch.schema.names:
        return batch.column(field)
    head, *rest = field.split(".")
    column = batch.column(head)
    for name in rest:
        column = pc.struct_field(column, name)
    return column


def _documents(
    file: CorpusFile, options: CorpusOptions, column: pa.Array, first: int, size: int
) -> Iterator[Document]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    for row, raw in enumerate(column.cast(pa.large_binary()).to_pylist(), first):
        try:
            text = (raw or b"").decode("utf-8", options.errors)
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{file.name}, row {row}: byte {error.start} of the text is not UTF-8",
                "mend the row, or use --errors replace to read U+FFFD there",
            ) from None
        for index, piece in enumerate(pieces(text)):
            yield Document(
                file=file.name, place=f"row {row}", text=piece, first=index == 0, size=size
            )
            size = 0


def _block(file: CorpusFile, column: pa.Array, first: int, size: int) -> TokenBlock:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    values = column.flatten()
    if values.null_count:
        raise CorpusError(
            f"{file.name}: a list of token ids in rows {first} to {first + len(column) - 1} "
            "holds a null",
            "write the lists without nulls",
        )
    begins = np.zeros(len(column) + 1, dtype=np.int64)
    np.cumsum(lengths, out=begins[1:])
    ids = values.to_numpy(zero_copy_only=False)
    starts = np.zeros(len(ids), dtype=np.bool_)
    starts[begins[:-1][lengths > 0]] = True
    return TokenBlock(
        ids=ids, starts=starts, size=size, locate=partial(_locate, file.name, first, begins)
    )


def _locate(name: str, first: int, begins: NDArray[np.int64], index: int) -> str:
    row = int(np.searchsorted(begins, index, side="right")) - 1
    return f"{name}, row {first + row}, position {index - int(begins[row])}"


READER = Reader(read=read, gives_text=gives_text)
