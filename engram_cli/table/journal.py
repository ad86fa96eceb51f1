"""The journal of a half-built table: what was asked for, then a line for each chunk that is whole.

A chunk is flushed and renamed before its line is written, so a line never speaks of a torn chunk,
and a torn last line only means that its chunk is made again.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
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
    """The chunks of `folder` that are whole: `done` maps a path to (size, checksum)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.done: dict[str, tuple[int, str]] = {}

    def begin(self, request: dict[str, Any]) -> None:
        """Start the journal of a new build. Raises OSError."""
        header = {"format": FORMAT, "version": 1, "request": request}
        with inner_file(self.path) as part:
            part.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def read(self, request: dict[str, Any], sizes: Mapping[str, int]) -> int:
        """Take up the chunks that are still there; how many bytes of the journal are whole lines.

        `sizes`: the bytes that each chunk of the table has; what else the journal names is left
        out. Raises OutputError for another request.
        """
        lines = self.path.read_bytes().split(b"\n")
        different = differences(_header(lines[0], self.path).get("request"), request)
        if different:
            raise OutputError(
                f"{self.path.parent} is a half-built table of another request: {different}",
                "run the same command again to finish it, or start over with --force",
            )
        for line in lines[1:-1]:
            entry = _entry(line)
            if entry is None or sizes.get(entry[0]) != entry[1]:
                continue
            if _size_of(self.path.parent / entry[0]) == entry[1]:
                self.done[entry[0]] = (entry[1], entry[2])
        return sum(len(line) + 1 for line in lines[:-1])

    def resume(self, request: dict[str, Any], sizes: Mapping[str, int]) -> None:
        """Read the journal and cut off a torn last line, to go on behind it."""
        os.truncate(self.path, self.read(request, sizes))

    def note_replaced(self, path: Path) -> None:
        """Note that the table at `path` is about to change places with this one. Raises OSError."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"replaced": os.lstat(path).st_ino}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def has_replaced(self, path: Path) -> bool:
        """Whether `path` is what changed places with this table."""
        try:
            lines = self.path.read_bytes().split(b"\n")
            told = parse_json(lines[-2])["replaced"]
            return bool(told == os.lstat(path).st_ino)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return False

    @property
    def done_bytes(self) -> int:
        """The bytes of the chunks that are whole."""
        return sum(size for size, _ in self.done.values())

    def add(self, name: str, size: int, checksum: str) -> None:
        """Note that chunk `name` is whole. Raises OSError."""
        line = json.dumps({"file": name, "size": size, "checksum": checksum})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self.done[name] = (size, checksum)


def is_journal(path: Path) -> bool:
    """Whether `path` is the journal of a build, for whatever request."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            _header(file.readline(_HEADER_BYTES), path)
    except (OSError, OutputError):
        return False
    return not path.is_symlink()


def filled(folder: Path) -> tuple[int, int]:
    """How many chunks of the half-built table in `folder` are whole, and their bytes.

    Chunks that the journal names and that are there with their sizes; none where it has no journal.
    """
    try:
        lines = (folder / NAME).read_bytes().split(b"\n")
    except OSError:
        return 0, 0
    entries = {entry[0]: entry[1] for line in lines[1:-1] if (entry := _entry(line)) is not None}
    whole = {name: size for name, size in entries.items() if _size_of(folder / name) == size}
    return len(whole), sum(whole.values())


def differences(there: Any, asked: dict[str, Any]) -> str:
    """What a request and another one disagree on, "" when they agree."""
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


def _entry(line: bytes) -> tuple[str, int, str] | None:
    try:
        entry = parse_json(line)
        name, size, checksum = entry["file"], entry["size"], entry["checksum"]
    except (ValueError, KeyError, TypeError):
        return None
    sound = isinstance(name, str) and type(size) is int and isinstance(checksum, str)
    if not sound or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    return name, size, checksum


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
