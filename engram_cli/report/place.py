"""Checks where a page may go: it replaces only pages that engram wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from engram_cli.errors import OutputError
from engram_cli.outputs import Kind, Listing, prepare_output

_BEGIN = 4096  # bytes: the marks of a page stand in its head
_END = b"</html>\n"
_HEAD = re.compile(rb"<!doctype html>\s*<html\b")
# The generator of every page; the title of trace pages of earlier versions, which had none.
_OURS = re.compile(
    rb'<meta name="generator" content="engram [^"]*">|<title>Where the memory speaks</title>'
)


def check_page(
    path: Path,
    force: bool,
    *,
    option: str = "--out",
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    artifacts: Iterable[Path] = (),
) -> None:
    """Raise OutputError if something is there, unless `force` is given and it is a page or empty.

    A page inside one of the folders in `artifacts` would be a foreign file, and is refused too.
    """
    page = Path(os.path.realpath(path))
    for folder in artifacts:
        if Path(os.path.realpath(folder)) in (page, *page.parents):
            raise OutputError(
                f"{path} lies in {folder}, which holds nothing but what engram lists there",
                f"write the page elsewhere with {option}",
            )
    prepare_output(path, PAGE, force=force, option=option, inputs=inputs)


def is_page(path: Path) -> bool:
    """Return whether `path` is a page that engram wrote, whole, with nothing after it."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            begin = file.read(_BEGIN)
            file.seek(max(0, path.stat().st_size - len(_END)))
            end = file.read()
    except OSError:
        return False
    return bool(_HEAD.match(begin) and _OURS.search(begin)) and end == _END


PAGE = Kind(name="report", listing=lambda path: Listing() if is_page(path) else None, folder=False)
