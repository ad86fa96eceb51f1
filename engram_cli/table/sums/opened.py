"""Opens a table that keeps sums for an update, also one whose update was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.table.attributes import Description, describe, half_updated, read_description
from engram_cli.table.grid import SUMS
from engram_cli.table.kept_sums import KeptSums, StoredSums, documents_array, read_sums
from engram_cli.table.store import bound_layout
from engram_cli.table.sums.change import DocumentChange
from engram_cli.table.sums.journal import UpdateJournal, UpdateState

_FILLED = ("next-token", "token-mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTable:
    """A table to update: as it was before, with the layout bound, and its sums.

    `interrupted`: the journal of an update that was interrupted; `finished`: of one that was
    interrupted when the table was complete again. None where there is no such journal.
    """

    about: Description
    layout: HashLayout
    sums: StoredSums
    journal: UpdateJournal
    interrupted: UpdateState | None
    finished: UpdateState | None


def open_for_update(path: Path) -> OpenTable:
    """Open a table that keeps sums, or one whose update was interrupted.

    Raises InputError for a table that cannot be updated, ArtifactError for a damaged one, and
    OutputError where an interrupted update cannot be completed.
    """
    if not half_updated(path):
        about = read_description(path)
        _check_init(path, about.attributes)
        sums = read_sums(path, about.attributes, _rows(about))
        journal = UpdateJournal(path, 1 + about.dim)
        if not holds_documents(sums, about.attributes):
            raise ArtifactError(
                f"{path / documents_array(1).name} does not hold the documents that filled the "
                "table",
                "give the whole corpus with --corpus: the table is filled again, sums included",
            )
        state, finished = None, journal.finished(about.attributes)
    else:
        journal = UpdateJournal(path, 1)
        state, finished = journal.read(), None
        about = describe(path, state.attributes)
        _check_init(path, about.attributes)
        journal = UpdateJournal(path, 1 + about.dim)
        kept = KeptSums.from_json(state.sums, path / SUMS)
        documents = int(about.attributes["init"]["parameters"]["documents"])
        sums = StoredSums(path=path, kept=kept, rows=_rows(about), documents=documents)
        if {layer for layer, _ in kept.columns} != set(_rows(about)) or kept.dim != about.dim:
            raise ArtifactError(f"the journal in {path / SUMS} is of another table", "build again")
    return OpenTable(
        about=about,
        layout=bound_layout(about),
        sums=sums,
        journal=journal,
        interrupted=state,
        finished=finished,
    )


def _check_init(path: Path, attributes: Mapping[str, Any]) -> None:
    init = attributes["init"]
    if attributes.get("patches"):
        raise InputError(
            f"{path} has rows of patches, which an update would keep or overwrite",
            f"take them back with engram patch undo {path}, update, then apply them again",
        )
    if init["name"] not in _FILLED:
        raise InputError(
            f"{path} was filled with --init {init['name']}",
            f"only tables of --init {' or '.join(_FILLED)} come from documents",
        )
    parameters = init["parameters"]
    if parameters.get("join_documents"):
        raise InputError(
            f"{path} was built with --join-documents, so n-grams cross its documents",
            "build it again with or without them",
        )
    if "documents_xxh64" not in parameters:
        raise InputError(
            f"{path} was built by an engram that did not note its documents",
            "build it again, with --keep-sums",
        )
    if any(type(parameters.get(name)) is not int for name in ("tokens", "documents")):
        raise ArtifactError(f"{path} is damaged: its init has no counts", "build the table again")


def holds_documents(sums: StoredSums, attributes: Mapping[str, Any]) -> bool:
    """Return whether the hashes kept with sums add up to the digest of the table's corpus."""
    total = int(np.add.reduce(sums.hashes(), dtype=np.uint64))
    return bool(attributes["init"]["parameters"].get("documents_xxh64") == f"{total:016x}")


def _rows(about: Description) -> dict[int, int]:
    return {entry.layer: entry.rows for entry in about.layout.layers}


def already_done(table: OpenTable, change: DocumentChange) -> bool:
    """Return whether an update with the same documents has completed this table and was killed
    before its command removed the journal."""
    return table.finished is not None and table.finished.request == change.request
