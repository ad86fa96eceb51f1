"""Turns Arrow columns into documents: each row is a text, or a list of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engram_cli.corpus.base import (
    IDS_FIELD,
    LONGEST_LABEL,
    NO_LABEL,
    TEXT_FIELD,
    CorpusFile,
    CorpusOptions,
    Item,
)
from engram_cli.corpus.flat import list_blocks
from engram_cli.corpus.own_files import own_schema, refused
from engram_cli.corpus.text import decode_whole, whole_document
from engram_cli.errors import CorpusError


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a file that are read: of documents, and of their labels.

    `texts`: the documents are texts, not lists of token ids. Fields are dotted where nested.
    """

    file: CorpusFile
    options: CorpusOptions
    field: str
    label: str | None
    texts: bool

    @property
    def wanted(self) -> list[str]:
        """Return the fields to read."""
        return [self.field] if self.label is None else [self.field, self.label]

    def labels(self, batch: pa.RecordBatch) -> list[str] | None:
        """Return the labels of the rows, None where none are asked for. Raises CorpusError."""
        if self.label is None:
            return None
        return labels_of(column_of(batch, self.label), self.label, self.file.name)

    def items(
        self, column: pa.Array, first: int, size: int, labels: Sequence[str] | None
    ) -> Iterator[Item]:
        """Yield the documents of a column whose row 0 is row `first` of the file.

        `size`: the bytes read for them; `labels`: of the rows. Raises CorpusError.
        """
        name = self.file.name
        if not self.texts:
            yield from _blocks(name, column, first, size, labels)
            return
        for row, raw in enumerate(_raw_texts(column), first):
            where = f"{name}, row {row}, the text"
            text = decode_whole(raw or b"", where, 0, self.options.errors)
            label = None if labels is None else labels[row - first]
            yield from whole_document(name, f"row {row}", text, size, label)
            size = 0


def choose_columns(schema: pa.Schema, file: CorpusFile, options: CorpusOptions) -> Columns:
    """Return the columns to read. Raises CorpusError, which lists the columns of the file."""
    own = own_schema(schema)
    if own is not None:
        raise refused(file.name, own)
    names = ", ".join(schema.names[:8])
    wanted = [options.field] if options.field else [TEXT_FIELD, IDS_FIELD]
    field = next((each for each in wanted if type_of(schema, each) is not None), None)
    if field is None:
        raise CorpusError(
            f"{file.name} has no column '{' or '.join(wanted)}'",
            f"its columns: {names}; use --field",
        )
    _check_once(schema, field, file)
    kind = type_of(schema, field)
    if not is_text(kind) and not _is_ids(kind):
        raise CorpusError(
            f"{file.name}: column '{field}' is {kind}, neither text nor lists of integers",
            "name the column with --field",
        )
    if options.label is not None:
        if type_of(schema, options.label) is None:
            raise CorpusError(
                f"{file.name} has no column '{options.label}' to group by", f"its columns: {names}"
            )
        _check_once(schema, options.label, file)
    return Columns(
        file=file, options=options, field=field, label=options.label, texts=is_text(kind)
    )


def _check_once(schema: pa.Schema, field: str, file: CorpusFile) -> None:
    top = top_of(schema, field)
    if (count := schema.names.count(top)) > 1:
        raise CorpusError(
            f"{file.name} has {count} columns '{top}'", "write it again with only one of that name"
        )


def top_of(schema: pa.Schema, field: str) -> str:
    """Return the column that a field is in."""
    return field if field in schema.names else field.partition(".")[0]


def type_of(schema: pa.Schema, field: str) -> pa.DataType | None:
    """Return the type of a field; None when there is none."""
    if field in schema.names:
        return schema.field(schema.names.index(field)).type
    found: Any = pa.struct(list(schema))
    for name in field.split("."):
        if not pa.types.is_struct(found) or found.get_field_index(name) < 0:
            return None
        found = found.field(name).type
    return found


def is_text(kind: pa.DataType | None) -> bool:
    """Return whether a column of that type holds texts."""
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_ids(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and pa.types.is_integer(kind.value_type)


def column_of(batch: pa.RecordBatch, field: str) -> pa.Array:
    """Return a field of a batch as a column."""
    if field in batch.schema.names:
        return batch.column(field)
    import pyarrow.compute as pc  # takes 20 ms, also for those who read other formats

    head, *rest = field.split(".")
    column = batch.column(head)
    for name in rest:
        column = pc.struct_field(column, name)
    return column


def labels_of(column: pa.Array, field: str, name: str) -> list[str]:
    """Return the labels of the rows of a column. Raises CorpusError for lists or structures."""
    if pa.types.is_dictionary(column.type):
        # Their labels are short; their texts, which rows may share, need not be.
        known = labels_of(column.dictionary, field, name)
        return [NO_LABEL if at is None else known[at] for at in column.indices.to_pylist()]
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise CorpusError(
            f"{name}: column '{field}' is {kind}, no label", "group by a column of texts or numbers"
        )
    if not is_text(kind):
        column = column.cast(pa.large_string())
    raw = column.cast(pa.large_binary()).to_pylist()
    return [
        NO_LABEL if each is None else each.decode("utf-8", "replace")[:LONGEST_LABEL] or NO_LABEL
        for each in raw
    ]


def _raw_texts(column: pa.Array) -> Iterator[bytes | None]:
    """Yield the bytes of each row; of a dictionary one after the other, for rows may share long
    ones."""
    if not pa.types.is_dictionary(column.type):
        yield from column.cast(pa.large_binary()).to_pylist()
        return
    texts = column.dictionary.cast(pa.large_binary())
    for index in column.indices.to_pylist():
        yield None if index is None else texts[index].as_py()


def _blocks(
    name: str, column: pa.Array, first: int, size: int, labels: Sequence[str] | None
) -> Iterator[Item]:
    import pyarrow.compute as pc

    if not len(column):
        return
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    values = column.flatten()
    if values.null_count:
        raise CorpusError(
            f"{name}: a list of token ids in rows {first} to {first + len(column) - 1} holds a "
            "null",
            "write the lists without nulls",
        )
    ids = values.to_numpy(zero_copy_only=False)
    yield from list_blocks(name, "row", first, ids, lengths, size, labels)
