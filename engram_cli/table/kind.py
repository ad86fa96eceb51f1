"""Which files a table consists of: a finished one by its manifest, a half-built one by names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engram_cli.errors import EngramError
from engram_cli.files import PART, read_json
from engram_cli.outputs import Kind, Listing, foreign_files
from engram_cli.table.attributes import META
from engram_cli.table.journal import NAME as JOURNAL
from engram_cli.table.journal import is_journal
from engram_cli.table.spec import FORMAT

_GROUP = r"(?:scales|hits|projection)"
_ARRAY = rf"(?:(?:{_GROUP}/)?[0-9]+|lookup)"
_CHUNK = re.compile(rf"({_ARRAY})/c\.[0-9]+(?:\.0)?")
_FOLDER = re.compile(rf"{_GROUP}|{_ARRAY}")
_WORK = re.compile(
    rf"(?:{_CHUNK.pattern}|(?:(?:{_GROUP}|{_ARRAY})/)?{re.escape(META)}|{re.escape(JOURNAL)})"
    rf"(?:{re.escape(PART)})?"
)


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
    """The files of a finished table: its metadata, and the chunks of the manifest.

    The journal is still there when a build was killed at its very end.
    """
    try:
        attributes: Any = read_json(path / META, "a table")["attributes"]
        if attributes["format"] != FORMAT or attributes["complete"] is not True:
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
    return Listing(frozenset(chunks) | metadata, frozenset((JOURNAL,)))


TABLE = Kind(name="table", listing=_listing)
