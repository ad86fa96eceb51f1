"""Streams the rows of a source into files of any format, and resumes where it was interrupted.

A format says which files there are, what they begin with, and where rows go (`row_plan`). They
grow in `<name>.partial` next to their place, where what is on the disk is noted (`row_writer`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.files import output_errors, read_json
from engram_cli.formats.base import WriteOptions
from engram_cli.formats.row_plan import Digest, NewFile, RowFiles
from engram_cli.formats.row_writer import NOTE, Done, Writer, note
from engram_cli.outputs import (
    MARK,
    Kind,
    Work,
    clear_work,
    new_file,
    new_folder,
    open_work,
    prepare_output,
    remove_work,
)
from engram_cli.table.build import free_bytes
from engram_cli.table.lock import build_lock, clear_lock

PARTIAL = ".partial"
_WORK = "conversion"


def prepare_rows(out: Path, kind: Kind, options: WriteOptions, inputs: Iterable[Path]) -> None:
    """Check the output before any work, as `prepare_output` does.

    What a run left that was killed when its output was in place is removed first.
    """
    folder = out.with_name(out.name + PARTIAL)
    clear_work(folder, _work((), ()))
    if os.path.lexists(out):
        with suppress(OutputError), build_lock(out):
            said = _said(folder)
            names = [name for name in (said or {}).get("files", ()) if isinstance(name, str)]
            if names and not any(os.path.lexists(folder / name) for name in names):
                remove_work(folder, _work((), names))
    clear_lock(out)
    prepare_output(out, kind, force=options.force, inputs=inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """The work folder with all rows, and the digest of each file, where that was asked for."""

    folder: Path
    digests: Mapping[str, Digest]


@contextmanager
def grown_files(out: Path, plan: RowFiles, options: WriteOptions) -> Iterator[Grown]:
    """Write all rows into files of a folder next to `out`, and give that folder.

    The block writes the small files, verifies and puts the files in place (`put_folder`). What an
    interrupted run of the same request has written is kept. Raises OutputError for one of another
    request, unless `options.force` drops it, and where the files do not fit.
    """
    folder, request = out.with_name(out.name + PARTIAL), plan.request
    work = _work(plan.files, plan.small)
    with build_lock(out):
        done = _begin(folder, plan, request, options.force)
        if done != Done():
            what = f"{done.rows:,} rows" if plan.places else f"{done.copied:,} bytes"
            options.progress.note(f"resuming an interrupted conversion: {what} are written")
        try:
            _require_room(out, plan, folder)
        except OutputError:
            if done == Done():  # nothing to resume
                remove_work(folder, work)
            raise
        options.progress.start(f"rows into {out.name}", plan.size, "bytes")
        with output_errors(folder), Writer(folder, plan, request) as writer:
            writer.grow(done, options)
        try:
            yield Grown(folder=folder, digests=writer.digests)
        except ArtifactError:  # what was written is not what was read: nothing to resume
            remove_work(folder, work)
            raise
        remove_work(folder, work)


def put_folder(
    folder: Path,
    out: Path,
    kind: Kind,
    options: WriteOptions,
    names: Sequence[str],
    inner: Mapping[str, bytes] | None = None,
) -> None:
    """Move files of the work folder to the new folder `out`, which appears whole.

    `inner`: files in folders of their own, by path. Raises OutputError.
    """
    with new_folder(out, kind, force=options.force) as new:
        for name in names:
            os.rename(folder / name, new / name)
        for name, raw in (inner or {}).items():
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_bytes(raw)


def put_file(file: Path, out: Path, kind: Kind, options: WriteOptions) -> None:
    """Move a file of the work folder to `out`. Raises OutputError."""
    with new_file(out, kind, force=options.force) as new:
        os.replace(file, new)


def _work(files: Sequence[NewFile], small: Sequence[str]) -> Work:
    names = [file.name for file in files] + [*small, NOTE]
    pattern = "|".join(re.escape(name) for name in names)
    return Work(name=_WORK, files=re.compile(rf"(?:{pattern})(?:\.part)?"))


def _begin(folder: Path, plan: RowFiles, request: str, force: bool) -> Done:
    """Make the work folder or take the one that is there; return what is done there."""
    said = _said(folder)
    if said is not None and said.get("request") != request:
        if not force:
            raise OutputError(
                f"{folder} is a half-written conversion of another source or request",
                "run that command again to finish it, or start over with --force",
            )
        listed = [name for name in said.get("files", ()) if isinstance(name, str)]
        remove_work(folder, _work((), listed))
        said = None
    open_work(folder, _work(plan.files, plan.small))
    if said is not None and all(_is_file(folder / file.name) for file in plan.files):
        rows, copied = said.get("rows"), said.get("copied")
        if _is_count(rows, plan.rows) and _is_count(copied, plan.copied_bytes):
            return Done(rows=int(rows or 0), copied=int(copied or 0))
    with output_errors(folder):
        for file in plan.files:
            with suppress(FileNotFoundError):
                (folder / file.name).unlink()
    note(folder, plan, request, Done())
    return Done()


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _said(folder: Path) -> dict[str, Any] | None:
    if folder.is_symlink() or not _is_file(folder / MARK) or not _is_file(folder / NOTE):
        return None
    try:
        return read_json(folder / NOTE, "a note of rows")
    except (InputError, ArtifactError):
        return None


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _require_room(out: Path, plan: RowFiles, folder: Path) -> None:
    there = sum((folder / f.name).stat().st_blocks * 512 for f in plan.files
                if (folder / f.name).exists())  # fmt: skip
    need, free = max(0, plan.size - there), free_bytes(out)
    if need > free:
        raise OutputError(
            f"{out} needs {need:,} bytes, {free:,} are free", "free some, or write to another disk"
        )
