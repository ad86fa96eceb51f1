"""Arrow columns in, documents out: a column of texts, or of lists of token ids; a row is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engram_cli.corpus.base import (
    BLOCK_TOKENS,
    IDS_FIELD,
    LONGEST_LABEL,
    NO_LABEL,
    TEXT_FIELD,
    CorpusFile,
    CorpusOptions,
    Document,
    TokenBlock,
    cut_names,
    runs,
)
from engram_cli.corpus.text import decode_whole, pieces
from engram_cli.errors import CorpusError


def field_of(schema: pa.Schema, file: CorpusFile, options: CorpusOptions) -> str:
    """The column that holds the documents. Raises CorpusError, which lists the columns."""
    wanted = [options.field] if options.field else [TEXT_FIELD, IDS_FIELD]
    for field in wanted:
        found = type_of(schema, field)
        if found is not None:
            _check_once(schema, field, file)
            if is_text(found) or _is_ids(found):
                return field
            raise CorpusError(
                f"{file.name}: column '{field}' is {found}, neither text nor lists of integers",
                "name the column with --field",
            )
    names = ", ".join(schema.names[:8])
    raise CorpusError(
        f"{file.name} has no column '{' or '.join(wanted)}'", f"its columns: {names}; use --field"
    )


def _check_once(schema: pa.Schema, field: str, file: CorpusFile) -> None:
    """Raises CorpusError where several columns have the name."""
    top = top_of(schema, field)
    if (count := schema.names.count(top)) > 1:
        raise CorpusError(
            f"{file.name} has {count} columns '{top}'", "write it again with only one of that name"
        )


def top_of(schema: pa.Schema, field: str) -> str:
    """The column that a field, dotted where nested, is in."""
    return field if field in schema.names else field.partition(".")[0]


def type_of(schema: pa.Schema, field: str) -> pa.DataType | None:
    """The type of a column, dotted where nested; None when there is none."""
    if field in schema.names:
        return schema.field(schema.names.index(field)).type
    found: Any = pa.struct(list(schema))
    for name in field.split("."):
        if not pa.types.is_struct(found) or found.get_field_index(name) < 0:
            return None
        found = found.field(name).type
    return found


def is_text(found: pa.DataType | None) -> bool:
    """Whether a column holds texts."""
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


def column_of(batch: pa.RecordBatch, field: str) -> pa.Array:
    """A column of a batch, dotted where nested."""
    if field in batch.schema.names:
        return batch.column(field)
    head, *rest = field.split(".")
    column = batch.column(head)
    for name in rest:
        column = pc.struct_field(column, name)
    return column


def label_field(schema: pa.Schema, file: CorpusFile, options: CorpusOptions) -> str | None:
    """The column of the labels, None where none are asked for. Raises CorpusError."""
    if options.label is not None and type_of(schema, options.label) is None:
        names = ", ".join(schema.names[:8])
        raise CorpusError(
            f"{file.name} has no column '{options.label}' to group by", f"its columns: {names}"
        )
    if options.label is not None:
        _check_once(schema, options.label, file)
    return options.label


def labels_of(column: pa.Array, field: str, name: str) -> list[str]:
    """The labels of the rows of a column. Raises CorpusError for one of lists or structures."""
    if pa.types.is_dictionary(column.type):
        # Their labels are short; their texts, which rows may share, need not be.
        known = labels_of(column.dictionary, field, name)
        return [NO_LABEL if at is None else known[at] for at in column.indices.to_pylist()]
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise CorpusError(
            f"{name}: column '{field}' is {kind}, no label", "group by a column of texts or numbers"
        )
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not text and not pa.types.is_string_view(kind):
        column = pc.cast(column, pa.large_string())
    raw = column.cast(pa.large_binary()).to_pylist()
    return [
        NO_LABEL if each is None else each.decode("utf-8", "replace")[:LONGEST_LABEL] or NO_LABEL
        for each in raw
    ]


def documents(
    file: CorpusFile,
    options: CorpusOptions,
    column: pa.Array,
    first: int,
    size: int,
    labels: Sequence[str] | None = None,
) -> Iterator[Document]:
    """The texts of a column whose row 0 is row `first` of the file, and the labels of its rows.

    Raises CorpusError.
    """
    for row, raw in enumerate(_raw_texts(column), first):
        text = decode_whole(raw or b"", f"{file.name}, row {row}, the text", 0, options.errors)
        for index, piece in enumerate(pieces(text)):
            yield Document(
                file=file.name,
                place=f"row {row}",
                text=piece,
                first=index == 0,
                size=size,
                label=None if labels is None else labels[row - first],
            )
            size = 0


def _raw_texts(column: pa.Array) -> Iterator[bytes | None]:
    """The bytes of each row; of a dictionary one after the other, for rows may share long ones."""
    if not pa.types.is_dictionary(column.type):
        yield from column.cast(pa.large_binary()).to_pylist()
        return
    texts = column.dictionary.cast(pa.large_binary())
    for index in column.indices.to_pylist():
        yield None if index is None else texts[index].as_py()


def blocks(
    file: CorpusFile,
    column: pa.Array,
    first: int,
    size: int,
    labels: Sequence[str] | None = None,
) -> Iterator[TokenBlock]:
    """The token ids of a column, as `documents` gives texts. Raises CorpusError."""
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
    named = () if labels is None else runs(labels, begins.tolist())
    for begin in range(0, max(len(ids), 1), BLOCK_TOKENS):
        end = begin + BLOCK_TOKENS
        yield TokenBlock(
            ids=ids[begin:end],
            starts=starts[begin:end],
            size=0 if begin else size,
            locate=partial(_locate, file.name, first, begins, begin),
            labels=cut_names(named, begin, min(end, len(ids))),
        )


def _locate(name: str, first: int, begins: NDArray[np.int64], begin: int, index: int) -> str:
    index += begin
    row = int(np.searchsorted(begins, index, side="right")) - 1
    return f"{name}, row {first + row}, position {index - int(begins[row])}"
