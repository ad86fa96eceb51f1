"""Which label a document has: the value of a field in, a short text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Names
from engram_cli.corpus.readers import READERS
from engram_cli.errors import CorpusError, InputError
from engram_cli.progress import SILENT, Progress

NO_LABEL = "(none)"  # documents without the field, or with a null there
_LONGEST = 120  # characters
_PATIENCE = 10_000  # documents without the field until that is told
_SHOWN = 8  # fields that a hint names


def check_labelled(files: Iterable[CorpusFile], options: CorpusOptions) -> None:
    """Raises InputError naming the first file whose documents have no fields to be labelled by."""
    for file in files:
        if options.label is not None and not READERS.load(file.format).labels:
            raise InputError(
                f"{file.name} cannot be grouped by '{options.label}': {file.format} has no fields",
                "group jsonl, parquet and arrow by a field, others by file or folder",
            )


def check_field(
    files: Sequence[CorpusFile], options: CorpusOptions, progress: Progress = SILENT
) -> None:
    """Raises CorpusError when no document has the field to be labelled by.

    Reads up to the first that has it. Schemas speak for themselves when their files are read, and
    what comes through a pipe is looked at afterwards, by `check_names`.
    """
    field = options.label
    if field is None or not files:
        return
    seen: dict[str, None] = {}
    met = 0
    for file in files:
        look = READERS.load(file.format).fields_until
        if look is None or (file.path is None and file.url is None):
            return
        for names in look(file, options, field):
            if names is None:
                return
            seen |= dict.fromkeys(names)
            met += 1
            if met == _PATIENCE:
                progress.note(
                    f"the first {met:,} documents have no field '{field}': looking in the others"
                )
    if met:
        raise _no_field(field, seen)


def check_names(names: Sequence[str], files: Iterable[CorpusFile], options: CorpusOptions) -> None:
    """Raises CorpusError when what came through a pipe had no labels; `names`: those counted."""
    piped = any(file.path is None and file.url is None for file in files)
    if options.label is not None and piped and list(names) == [NO_LABEL]:
        raise _no_field(options.label, ())


def _no_field(field: str, seen: Iterable[str]) -> CorpusError:
    known = list(seen)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    hint = f"their fields: {', '.join(known[:_SHOWN])}{more}" if known else "check its spelling"
    return CorpusError(f"no document has a field '{field}' to group by", hint)


def label_of(value: Any, field: str, where: str) -> str:
    """The label that a JSON value is. Raises CorpusError for a list or an object."""
    if value is None:
        return NO_LABEL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        raise CorpusError(
            f"{where}: field '{field}' is a {type(value).__name__}, not a label",
            "group by a field of texts or numbers",
        )
    # Half a surrogate pair, which JSON can spell, is no text.
    return str(value).encode("utf-8", "replace").decode()[:_LONGEST] or NO_LABEL


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
