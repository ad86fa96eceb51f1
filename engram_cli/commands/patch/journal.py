"""The journal of an artifact that is patched in place: a folder next to it, `NAME.patches`.

For each patch it has the patch, and the rows that it replaced. `patches.json` lists them in the
order in which they were applied, and says which is being applied or undone. It is written before
the artifact is touched, and again when that is whole, so that a run that was killed can be resumed
or undone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engram_cli.errors import ArtifactError
from engram_cli.files import PART, canonical_json, inner_file, output_errors, read_json
from engram_cli.outputs import Work, open_work, remove_work
from engram_cli.patches.patch import Patch
from engram_cli.patches.patch_file import read_stored, write_stored
from engram_cli.typed_json import as_json, read_json_as

LIST, ORIGINAL = "patches.json", "original.json"
FORMAT, VERSION = "engram-patches", 1
PATCH, BEFORE = "patch", "before"
Operation = Literal["apply", "undo"]
WORK = Work(
    name="patches of an artifact",
    files=re.compile(
        rf"(?:patches\.json|original\.json|[0-9]{{4,9}}\.(?:{PATCH}|{BEFORE})\.safetensors)"
        rf"(?:{re.escape(PART)})?"
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A patch in the journal: its `digest`, and the artifact's digest `before` and `after` it."""

    number: int
    digest: str
    description: str
    rows: int
    before: str
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What was begun: an `operation`, its entry, and the digest of the artifact when it began."""

    operation: Operation
    entry: Entry
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The patches that were applied to an artifact in place, the oldest first."""

    entries: tuple[Entry, ...] = ()
    pending: Pending | None = None


def journal_folder(path: Path) -> Path:
    """Return the folder of the journal of the artifact at `path`."""
    return path.with_name(f"{path.name}.patches")


def read_journal(path: Path) -> Journal:
    """Return the journal of the artifact at `path`, an empty one where there is none.

    Raises ArtifactError for one that cannot be read.
    """
    file = journal_folder(path) / LIST
    if not file.is_file():
        return Journal()
    document = read_json(file, "a journal of patches")
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        raise ArtifactError(f"{file} is no journal of this version", "upgrade engram")
    try:
        return read_json_as(Journal, document.get("journal"), "the journal")
    except ValueError as error:
        raise ArtifactError(f"{file} is damaged: {error}", "move the folder away") from None


def open_journal(path: Path) -> None:
    """Make the folder of a journal. Raises OutputError for another folder of that name."""
    open_work(journal_folder(path), WORK)


def write_journal(path: Path, journal: Journal) -> None:
    """Write the list; with no patch left, remove the journal. Raises OutputError."""
    if not journal.entries and journal.pending is None:
        remove_work(journal_folder(path), WORK)
        return
    document = {"format": FORMAT, "version": VERSION, "journal": as_json(journal)}
    with inner_file(journal_folder(path) / LIST) as part:
        part.write_bytes(canonical_json(document))


def next_number(journal: Journal) -> int:
    """Return the number of the next entry."""
    return max((entry.number for entry in journal.entries), default=0) + 1


def keep_rows(path: Path, number: int, name: str, patch: Patch) -> None:
    """Keep the rows of an entry: those of the patch, or those before it."""
    file = rows_file(path, number, name)
    with output_errors(file), inner_file(file) as part:
        write_stored(part, patch)


def kept_rows(path: Path, entry: Entry, name: str) -> Patch:
    """Return rows that were kept. Raises InputError, ArtifactError where they are not there."""
    return read_stored(rows_file(path, entry.number, name))


def drop_rows(path: Path, entry: Entry) -> None:
    """Remove the rows of an entry."""
    for name in (PATCH, BEFORE):
        rows_file(path, entry.number, name).unlink(missing_ok=True)


def rows_file(path: Path, number: int, name: str) -> Path:
    """Return the file of the rows of an entry."""
    return journal_folder(path) / f"{number:04d}.{name}.safetensors"


def keep_original(path: Path, raw: bytes) -> None:
    """Keep the metadata that the artifact had before any patch."""
    with inner_file(journal_folder(path) / ORIGINAL) as part:
        part.write_bytes(raw)


def original(path: Path) -> bytes | None:
    """Return the metadata that the artifact had before any patch, None where it was not kept."""
    try:
        return (journal_folder(path) / ORIGINAL).read_bytes()
    except OSError:
        return None


def with_pending(journal: Journal, operation: Operation, entry: Entry, digest: str) -> Journal:
    """Return the journal with something that begins."""
    return replace(journal, pending=Pending(operation=operation, entry=entry, digest=digest))


def listed(entry: Entry) -> Mapping[str, Any]:
    """Return what the metadata of an artifact says of a patch."""
    return {
        "digest": entry.digest,
        "description": entry.description,
        "rows": entry.rows,
    }
