"""What may be replaced: only what engram wrote, with nothing else in it.

Each kind of artifact says which files it consists of, from the marker that it parses. What lies in
a folder beyond them belongs to somebody else, and no command replaces that folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from engram_cli.addresses import address_of
from engram_cli.errors import OutputError

_NAMED = 3  # foreign files that a message names


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of an artifact, as paths in its folder; `optional` ones may be missing."""

    needed: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()

    @property
    def files(self) -> frozenset[str]:
        """All files that belong to the artifact."""
        return self.needed | self.optional


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of artifact: `name` for messages, and how to list the files of one.

    `listing(path)` parses the marker: it gives None for anything that engram did not finish there.
    An artifact that is a single file has an empty Listing and `folder` False.
    """

    name: str
    listing: Callable[[Path], Listing | None]
    folder: bool = True

    def problem(self, path: Path) -> str | None:
        """Why `path` may not be replaced or removed, None when it may: then it is empty, or an
        artifact of this kind with nothing else in it."""
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                return "is a symbolic link"
            if stat.S_ISDIR(mode) and not os.listdir(path):
                return None
            if stat.S_ISREG(mode) and os.path.getsize(path) == 0:
                return None
            if not (stat.S_ISDIR if self.folder else stat.S_ISREG)(mode):
                return f"is no {self.name}"
            listing = self.listing(path)
            return f"is no {self.name}" if listing is None else self._foreign(path, listing)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def unfinished(self, path: Path) -> str | None:
        """What is wrong with an artifact at `path` that was just written, None when nothing is."""
        listing = self.listing(path)
        if listing is None:
            return f"is no {self.name}"
        for name in sorted(listing.needed):
            if not os.path.lexists(path / name):
                return f"lacks {name}"
        return self._foreign(path, listing)

    def _foreign(self, path: Path, listing: Listing) -> str | None:
        if not self.folder:
            return None
        files = listing.files
        folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
        return foreign_files(path, files.__contains__, folders.__contains__)


def foreign_files(
    folder: Path, is_file: Callable[[str], bool], is_folder: Callable[[str], bool]
) -> str | None:
    """What `folder` holds beyond the files and folders that belong to it, in words; None when
    nothing. Both are asked about paths in the folder. A link belongs to nothing."""
    found = list(islice(_foreign(str(folder), "", is_file, is_folder), _NAMED + 1))
    if not found:
        return None
    more = " and more" if len(found) > _NAMED else ""
    return f"holds {', '.join(found[:_NAMED])}{more}, which engram did not write there"


def _foreign(
    folder: str, inside: str, is_file: Callable[[str], bool], is_folder: Callable[[str], bool]
) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            name = inside + entry.name
            if entry.is_dir(follow_symlinks=False):
                if is_folder(name):
                    yield from _foreign(entry.path, f"{name}/", is_file, is_folder)
                else:
                    yield f"{name}/"
            elif not entry.is_file(follow_symlinks=False) or not is_file(name):
                yield name


def check_output(
    path: Path,
    kind: Kind,
    *,
    force: bool,
    option: str = "--out",
    inputs: Iterable[str | os.PathLike[str] | None] = (),
) -> None:
    """Raises OutputError when `path` may not be written; `option` names the place.

    That is when it is an address or a symbolic link, when it is or holds one of the `inputs`, when
    it exists and `force` is not given, and when `kind` does not allow to replace it.
    """
    address = address_of(path)
    if address is not None:
        raise OutputError(
            f"{address} is an address, and only paths on this machine are written",
            f"give a path with {option}, then upload what lies there",
        )
    elsewhere = f"write elsewhere with {option}"
    if path.name in ("", ".."):
        raise OutputError(f"{path} names no new file or folder", elsewhere)
    if path.is_symlink():
        raise OutputError(
            f"{path} is a symbolic link", f"give the place that it points to, or {elsewhere}"
        )
    if not os.path.lexists(path):
        return
    check_inputs(path, inputs, option=option)
    if os.path.ismount(path):
        raise OutputError(
            f"{path} is where a disk is mounted, which cannot be replaced",
            f"write into it with {option} {path / 'engram'}",
        )
    if not force:
        raise OutputError(
            f"{path} already exists", f"use --force to replace it, or {option} to write elsewhere"
        )
    problem = kind.problem(path)
    if problem is not None:
        raise OutputError(f"{path} {problem}, so --force does not replace it", elsewhere)


def check_inputs(
    path: Path, inputs: Iterable[str | os.PathLike[str] | None], *, option: str = "--out"
) -> None:
    """Raises OutputError when what is at `path` is, or holds, something that is read."""
    try:
        out = os.stat(path)
    except OSError:
        return
    met: set[str] = set()
    for each in inputs:
        if each is None:
            continue
        place = os.path.realpath(each)
        while place not in met:
            met.add(place)
            try:
                same = os.path.samestat(os.stat(place), out)
            except OSError:
                same = False
            if same:
                whole = place == os.path.realpath(each)
                how = "is what" if whole else f"holds {os.fspath(each)}, which"
                raise OutputError(
                    f"{path} {how} this command reads", f"write elsewhere with {option}"
                )
            place = os.path.dirname(place)
