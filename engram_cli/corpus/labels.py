"""Which label a document has: the value of a field in, a short text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Names
from engram_cli.corpus.readers import READERS
from engram_cli.errors import CorpusError, InputError

NO_LABEL = "(none)"  # documents without the field, or with a null there
_LONGEST = 120  # characters


def check_labelled(files: Iterable[CorpusFile], options: CorpusOptions) -> None:
    """Raises InputError naming the first file whose documents have no fields to be labelled by."""
    for file in files:
        if options.label is not None and not READERS.load(file.format).labels:
            raise InputError(
                f"{file.name} cannot be grouped by '{options.label}': {file.format} has no fields",
                "group jsonl, parquet and arrow by a field, others by file or folder",
            )


def label_of(value: Any, field: str, where: str) -> str:
    """The label that a JSON value is. Raises CorpusError for a list or an object."""
    if value is None:
        return NO_LABEL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        raise CorpusError(
            f"{where}: field '{field}' is a {type(value).__name__}, no label",
            "group by a field of texts or numbers",
        )
    # Half a surrogate pair, which JSON can spell, is no text.
    return str(value).encode("utf-8", "replace").decode()[:_LONGEST] or NO_LABEL


def labels_of(column: pa.Array, field: str, name: str) -> list[str]:
    """The labels of the rows of a column. Raises CorpusError for one of lists or structures."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
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
        NO_LABEL if each is None else each.decode("utf-8", "replace")[:_LONGEST] or NO_LABEL
        for each in raw
    ]


def runs(labels: Sequence[str], begins: Sequence[int]) -> Names:
    """Where the tokens of each label begin: those of document i are begins[i]..begins[i + 1]-1."""
    found: list[tuple[int, str]] = []
    for label, begin, end in zip(labels, begins[:-1], begins[1:], strict=True):
        if begin < end and (not found or found[-1][1] != label):
            found.append((begin, label))
    return tuple(found)
