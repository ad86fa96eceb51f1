"""The journal of a half-built table: the request, then a line for each chunk that is whole.

A chunk is flushed and renamed before its line is written. So no line names a torn chunk, and a torn
last line only means that its chunk is made again.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engram_cli.errors import OutputError
from engram_cli.files import PART, inner_file, parse_json
from engram_cli.outputs import Work

NAME = "build.jsonl"
FORMAT = "engram-table-build"
_HEADER_BYTES = 2**24
# What lies next to a table while it is filled from a corpus.
SCRATCH = Work(
    name="scratch of a table",
    files=re.compile(
        rf"tokens\.(?:u32|json)(?:{re.escape(PART)})?|pairs-[0-9a-z-]+(?:\.u64|{re.escape(PART)})"
    ),
)


class Journal:
    """Lists the chunks of `folder` that are whole: `done` maps a path to (size, checksum)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.done: dict[str, tuple[int, str]] = {}

    def begin(self, request: dict[str, Any]) -> None:
        """Start the journal of a new build. Raises OSError."""
        header = {"format": FORMAT, "version": 1, "request": request}
        with inner_file(self.path) as part:
            part.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def read(self, request: dict[str, Any], sizes: Mapping[str, int]) -> int:
        """Read the chunks that are still there; return the bytes of the journal's whole lines.

        `sizes`: the bytes of each chunk of the table; what else the journal names is left out.
        Raises OutputError for another request.
        """
        lines = self.path.read_bytes().split(b"\n")
        different = differences(_header(lines[0], self.path).get("request"), request)
        if different:
            raise OutputError(
                f"{self.path.parent} is a half-built table of another request: {different}",
                "run the same command again to finish it, or start over with --force",
            )
        for name, size, checksum in _whole(self.path.parent, lines):
            if sizes.get(name) == size:
                self.done[name] = (size, checksum)
        return sum(len(line) + 1 for line in lines[:-1])

    def resume(self, request: dict[str, Any], sizes: Mapping[str, int]) -> None:
        """Read the journal and cut off a torn last line."""
        os.truncate(self.path, self.read(request, sizes))

    def note_replaced(self, path: Path) -> None:
        """Note that this table is about to replace the one at `path`. Raises OSError."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"replaced": os.lstat(path).st_ino}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def has_replaced(self, path: Path) -> bool:
        """Return whether `path` is what this table replaced."""
        try:
            lines = self.path.read_bytes().split(b"\n")
            told = parse_json(lines[-2])["replaced"]
            return bool(told == os.lstat(path).st_ino)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return False

    @property
    def done_bytes(self) -> int:
        """Bytes of the chunks that are whole."""
        return sum(size for size, _ in self.done.values())

    def add(self, name: str, size: int, checksum: str) -> None:
        """Note that chunk `name` is whole. Raises OSError."""
        line = json.dumps({"file": name, "size": size, "checksum": checksum})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self.done[name] = (size, checksum)


def is_journal(path: Path) -> bool:
    """Return whether `path` is the journal of a build, of any request."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            _header(file.readline(_HEADER_BYTES), path)
    except (OSError, OutputError):
        return False
    return not path.is_symlink()


def filled(folder: Path) -> tuple[int, int]:
    """Return how many chunks of the half-built table in `folder` are whole, and their bytes."""
    try:
        lines = (folder / NAME).read_bytes().split(b"\n")
    except OSError:
        return 0, 0
    whole = {name: size for name, size, _ in _whole(folder, lines)}
    return len(whole), sum(whole.values())


def differences(there: Any, asked: dict[str, Any]) -> str:
    """Return what two requests differ in, "" when they agree."""
    if not isinstance(there, dict):
        return "its journal cannot be read"
    names = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
    return ", ".join(f"{name} {there.get(name)} (now {asked.get(name)})" for name in names)


def _header(line: bytes, path: Path) -> dict[str, Any]:
    try:
        header = parse_json(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise OutputError(f"{path} is not the journal of a build", "start over with --force")
    return header


def _whole(folder: Path, lines: Sequence[bytes]) -> Iterator[tuple[str, int, str]]:
    """Yield name, size and checksum of the chunks that a journal names and that are still there."""
    for line in lines[1:-1]:
        try:
            entry = parse_json(line)
            name, size, checksum = entry["file"], entry["size"], entry["checksum"]
        except (ValueError, KeyError, TypeError):
            continue
        sound = isinstance(name, str) and type(size) is int and isinstance(checksum, str)
        if not sound or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            continue
        with suppress(OSError):
            if (folder / name).stat().st_size == size:
                yield name, size, checksum
