"""Defines what `sources` asks about names, and answers it for the files of this machine."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Protocol

from engram_cli.corpus.base import CorpusFile
from engram_cli.corpus.remote import RemoteStorage, is_remote
from engram_cli.corpus.stamps import local_file
from engram_cli.errors import CorpusError


class Storage(Protocol):
    """Lists and reads files by name. All methods raise CorpusError for what cannot be read."""

    @property
    def distant(self) -> bool:
        """Whether reading the start of a file is slow."""

    def kind(self, name: str) -> str | None:
        """Return "file", "folder", "thing" for anything else, or None where nothing is there."""

    def matches(self, pattern: str) -> list[str] | None:
        """Return the files that match, sorted; None if `pattern` has no wildcard."""

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder, sorted."""

    def join(self, folder: str, name: str) -> str:
        """Return the full name of `name` in `folder`."""

    def key(self, name: str) -> str:
        """Return one key for all names of the same file."""

    def head(self, name: str, length: int) -> bytes:
        """Return the first `length` bytes of a file."""

    def file(self, name: str, format_: str) -> CorpusFile:
        """Return the corpus file of that name."""


class LocalStorage:
    """Reads the files of this machine."""

    distant = False

    def kind(self, name: str) -> str | None:
        """See `Storage`; pipes and devices are things."""
        if os.path.isdir(name):
            return "folder"
        if os.path.isfile(name):
            return "file"
        return "thing" if os.path.exists(name) else None

    def matches(self, pattern: str) -> list[str] | None:
        """See `Storage`."""
        if not glob.has_magic(pattern):
            return None
        return [name for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name)]

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """See `Storage`; links to folders count as neither, so that no loop is walked."""
        try:
            with os.scandir(folder) as found:
                inside = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise CorpusError(
                f"cannot read {folder}: {error.strerror}", "check the folder"
            ) from None
        return (
            [entry.name for entry in inside if entry.is_dir(follow_symlinks=False)],
            [entry.name for entry in inside if entry.is_file()],
        )

    def join(self, folder: str, name: str) -> str:
        """See `Storage`."""
        return str(Path(folder, name))

    def key(self, name: str) -> str:
        """See `Storage`."""
        return os.path.realpath(name)

    def head(self, name: str, length: int) -> bytes:
        """See `Storage`."""
        try:
            with open(name, "rb") as stream:
                return stream.read(length)
        except OSError as error:
            raise CorpusError(f"cannot read {name}: {error.strerror}", "check the file") from None

    def file(self, name: str, format_: str) -> CorpusFile:
        """See `Storage`; the size of a pipe is unknown."""
        try:
            return local_file(Path(name), format_)
        except OSError as error:
            raise CorpusError(f"cannot read {name}: {error.strerror}", "check the file") from None


LOCAL = LocalStorage()
REMOTE = RemoteStorage()


def storage_of(name: str) -> Storage:
    """Return the storage that a name belongs to."""
    return REMOTE if is_remote(name) else LOCAL
