"""Finds the folder in which a table is built, and moves the finished table to its place.

A table grows in `<name>.partial` next to its place and is moved there when it is finished. At every
moment the old table, the new one or none is at the place, and all that a kill leaves is finished or
removed by the next run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from engram_cli.errors import EngramError, OutputError
from engram_cli.files import PART, fsync_folder, output_errors, read_json, rename_new
from engram_cli.outputs import (
    Kind,
    Listing,
    check_name,
    check_output,
    clear_output,
    foreign_files,
    replace,
)
from engram_cli.table.attributes import META, PARTIAL_SUFFIX
from engram_cli.table.grid import SUMS
from engram_cli.table.journal import NAME as JOURNAL
from engram_cli.table.journal import Journal, is_journal
from engram_cli.table.kept_sums import sums_files
from engram_cli.table.lock import build_lock, clear_lock
from engram_cli.table.spec import FORMAT, TableSpec
from engram_cli.temporary import clear_leftovers, discard, make_folder, temporary

_GROUP = r"(?:scales|hits|projection)"
_ARRAY = rf"(?:(?:{_GROUP}/)?[0-9]+|lookup)"
_SUMS = rf"{SUMS}/(?:[0-9]+|documents)"
_CHUNK = re.compile(rf"({_ARRAY})/c\.[0-9]+(?:\.0)?")
_FOLDER = re.compile(rf"{_GROUP}|{_ARRAY}|{SUMS}|{_SUMS}")
_WORK = re.compile(
    rf"(?:{_CHUNK.pattern}|{_SUMS}/c\.0(?:\.0)?|"
    rf"(?:(?:{_GROUP}|{_ARRAY}|{SUMS}|{_SUMS})/)?{re.escape(META)}|{re.escape(JOURNAL)})"
    rf"(?:{re.escape(PART)})?"
)


def partial_folder(out: Path) -> Path:
    """Return where the table for `out` lies while it is being built."""
    return out.with_name(out.name + PARTIAL_SUFFIX)


def scratch_folder(out: Path) -> Path:
    """Return where what is needed only while the table is built lies: tokens, pairs."""
    return out.with_name(f".{out.name}.scratch")


def check_place(
    out: Path, force: bool, inputs: Iterable[str | os.PathLike[str] | None] = ()
) -> None:
    """Raise OutputError when something is at `out` that may not be replaced, or in the way of the
    half-built table."""
    check_output(out, TABLE, force=force, inputs=inputs)
    _check_partial(partial_folder(out))


def clear_place(out: Path) -> None:
    """Finish or remove what a killed build left next to `out`; a live one is left alone.

    Raises OutputError for a path that names no new folder.
    """
    check_name(out)
    clear_lock(scratch_folder(out))
    if (out / JOURNAL).is_file():
        with suppress(OutputError), build_lock(out):
            settle(out)
    clear_lock(out)
    clear_output(out, TABLE)
    clear_leftovers(partial_folder(out), _may_go)


def settle(out: Path) -> None:
    """Finish the replacing of a table that was killed when the new one was at `out`.

    Only for the holder of the lock. Raises OutputError.
    """
    journal, old = Journal(out), partial_folder(out)
    if TABLE.problem(out) is not None or not journal.path.is_file():
        return
    with output_errors(out):
        if journal.has_replaced(old) and TABLE.problem(old) is None:
            discard(old, _may_go)
        journal.path.unlink()


def open_partial(out: Path, spec: TableSpec, force: bool) -> Journal:
    """Return the journal of the half-built table for `out`: one of the same request, or a new one.

    With `force` one of another request is dropped. Raises OutputError, also for a folder in the
    way that is no half-built table or holds something else.
    """
    folder = partial_folder(out)
    journal = Journal(folder)
    _check_partial(folder)
    if os.path.lexists(folder):
        with output_errors(folder):
            try:
                journal.resume(spec.request, spec.chunk_sizes)
                return journal
            except OutputError:
                if not force:
                    raise
            drop_partial(out)
    with output_errors(folder):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            make_folder(folder, lambda new: Journal(new).begin(spec.request))
        except FileExistsError:
            raise OutputError(f"{folder} is in the way", "move it away") from None
    return Journal(folder)


def drop_partial(out: Path) -> None:
    """Remove the half-built table for `out`. Raises OSError."""
    discard(partial_folder(out), _may_go)


def put_in_place(out: Path, journal: Journal, force: bool) -> None:
    """Move the finished table to `out`, in one step with the check of what is there by now.

    Raises OSError, OutputError when something may not be replaced; then the table stays half-built
    in its journal's eyes, and the same command finishes it.
    """
    folder = partial_folder(out)
    try:
        rename_new(folder, out)
    except FileExistsError:
        if not force:
            raise OutputError(
                f"{out} appeared while the table was being built, and is kept",
                "move it away and run the same command again: it takes what is done",
            ) from None
        journal.note_replaced(out)
        with temporary(out, folder=True) as aside:
            replace(aside, folder, out, TABLE)
    fsync_folder(out.parent)
    (out / JOURNAL).unlink()


def _check_partial(folder: Path) -> None:
    problem = half_built_problem(folder) if os.path.lexists(folder) else None
    if problem is not None:
        raise OutputError(f"{folder} is in the way: it {problem}", "move it away")


def _may_go(folder: Path) -> bool:
    """Return whether `<name>.partial` was written by engram: half-built, or a table replaced."""
    return half_built_problem(folder) is None or TABLE.problem(folder) is None


def half_built_problem(folder: Path) -> str | None:
    """Why `folder` may not be worked in as a half-built table, None when it may: it has a journal,
    and holds no more than half-built tables do."""
    if folder.is_symlink():
        return "is a symbolic link"
    if not is_journal(folder / JOURNAL):
        return "is no half-built table"
    try:
        return foreign_files(
            folder,
            lambda name: _WORK.fullmatch(name) is not None,
            lambda name: _FOLDER.fullmatch(name) is not None,
        )
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _listing(path: Path) -> Listing | None:
    """Return the files of a finished table: its metadata, and the chunks of the manifest.

    The journal is still there when a build was killed at its very end. A half-updated table may be
    replaced as well.
    """
    try:
        attributes: Any = read_json(path / META, "a table")["attributes"]
        whole = attributes["complete"] is True or attributes.get("updating") is True
        if attributes["format"] != FORMAT or not whole:
            return None
        chunks = attributes["manifest"]["files"]
        found = [_CHUNK.fullmatch(name) for name in chunks]
    except (EngramError, KeyError, TypeError):
        return None
    if not isinstance(chunks, dict) or not all(found):
        return None
    arrays = {match[1] for match in found if match is not None}
    groups = {name.partition("/")[0] for name in arrays if "/" in name}
    metadata = {META, *(f"{name}/{META}" for name in arrays | groups)}
    sums = sums_files(int(name) for name in arrays if name.isdecimal())
    return Listing(frozenset(chunks) | metadata, frozenset((JOURNAL, *sums)))


TABLE = Kind(name="table", listing=_listing, last=META)
