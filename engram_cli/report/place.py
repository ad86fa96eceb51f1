"""Where a page may go: a path in; nothing out, or a refusal to replace what is no page of ours."""

from __future__ import annotations

import re
from pathlib import Path

from engram_cli.files import refuse_existing

_BEGIN = 4096  # bytes: the marks of a page stand in its head
_HEAD = re.compile(rb"<!doctype html>\s*<html\b")
# The generator of every page; what pages say that were drawn before they had one.
_OURS = re.compile(
    rb'<meta name="generator" content="engram [^"]*">|<title>Where the memory speaks</title>'
)


def check_page(path: Path, force: bool, *, option: str = "--out") -> None:
    """Raises OutputError for what is there, unless `force` is given and it is a page or empty."""
    refuse_existing(path, force, is_page, "report", option=option)


def is_page(path: Path) -> bool:
    """Whether `path` is a page of ours."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            begin = file.read(_BEGIN)
    except OSError:
        return False
    return bool(_HEAD.match(begin) and _OURS.search(begin))
