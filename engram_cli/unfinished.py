"""Folders of fixed names that keep unfinished work from one run to the next.

Such a folder appears with a mark in it, in one step, and holds only files of known names. A folder
that merely has the name is never written to, and never removed.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.files import canonical_json, output_errors, read_json
from engram_cli.ownership import foreign_files
from engram_cli.temporary import clear_leftovers, discard, make_folder

MARK, FORMAT = "engram-work.json", "engram-work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A kind of unfinished work: its `name`, and the names its `files` may have."""

    name: str
    files: re.Pattern[str]

    def has_mark(self, folder: Path) -> bool:
        """Whether `folder` is no link and has the mark of this kind."""
        if folder.is_symlink() or (folder / MARK).is_symlink():
            return False
        try:
            said = read_json(folder / MARK, "a mark")
        except (InputError, ArtifactError):
            return False
        return (said.get("format"), said.get("work")) == (FORMAT, self.name)

    def problem(self, folder: Path) -> str | None:
        """Why `folder` may not be worked in or removed, None when it may."""
        if not self.has_mark(folder):
            return "was not made by engram"
        try:
            return foreign_files(folder, self._is_own, lambda _: False)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def _is_own(self, name: str) -> bool:
        return name == MARK or self.files.fullmatch(name) is not None


def open_work(folder: Path, work: Work) -> None:
    """Make `folder`, or take the one that is there. Raises OutputError when it is not ours."""
    clear_work(folder, work)
    with output_errors(folder):
        if not os.path.lexists(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            said = canonical_json({"format": FORMAT, "work": work.name})
            with suppress(FileExistsError):  # which is then judged as any other
                make_folder(folder, lambda new: (new / MARK).write_bytes(said))
    problem = work.problem(folder)
    if problem is not None:
        raise OutputError(f"{folder} is in the way: it {problem}", "move it away")


def remove_work(folder: Path, work: Work) -> None:
    """Remove `folder`; where it holds more than ours, only our files; nothing without our mark."""
    clear_work(folder, work)
    if not work.has_mark(folder):
        return
    with output_errors(folder):
        if discard(folder, lambda moved: work.problem(moved) is None):
            return
        for path in list(folder.iterdir()):
            if work.files.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()


def clear_work(folder: Path, work: Work) -> None:
    """Remove what a run left that was killed while it made or removed `folder`."""
    clear_leftovers(folder, lambda moved: work.problem(moved) is None)
