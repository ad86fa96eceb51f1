"""Copies a table file by file; the holes of its sums, rows that nothing fell on, stay holes."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from engram_cli.errors import ArtifactError
from engram_cli.files import output_errors
from engram_cli.table.grid import DAMAGED, SUMS
from engram_cli.table.kept_sums import WORK_FILES
from engram_cli.table.places import TABLE

_PIECE = 2**24


def copy_table(source: Path, target: Path) -> None:
    """Copy the files of a table to the folder `target`, without the journal of an update.

    Raises ArtifactError for a folder that is no table, OutputError.
    """
    listing = TABLE.listing(source)
    if listing is None:
        raise ArtifactError(f"{source} is no table", DAMAGED)
    work = {f"{SUMS}/{name}" for name in WORK_FILES}
    with output_errors(target):
        for name in sorted(listing.files - work):
            if (source / name).is_file() and not (source / name).is_symlink():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                _copy(source / name, target / name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file; only what is no hole, where the system says where those are."""
    if not hasattr(os, "SEEK_DATA"):
        shutil.copyfile(source, target)
        return
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        size, at = os.fstat(old.fileno()).st_size, 0
        new.truncate(size)
        while at < size:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            old.seek(at)
            new.seek(at)
            while at < end:
                piece = old.read(min(_PIECE, end - at))
                if not piece:
                    return
                view = memoryview(piece)
                while view:
                    view = view[new.write(view) :]
                at += len(piece)
