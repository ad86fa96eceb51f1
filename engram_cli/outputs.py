"""Outputs appear whole or not at all, and `--force` replaces only what engram wrote.

Every output is written in a temporary folder next to its place, flushed to the disk, then moved
there in one step. Each kind of artifact says which files it consists of, from the marker that it
parses. What lies in a folder beyond them belongs to somebody else, and no command replaces that
folder. What the operating system refuses becomes an `OutputError`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.files import (
    address_of,
    canonical_json,
    exchange,
    fsync_folder,
    output_errors,
    read_json,
    rename_new,
)
from engram_cli.temporary import Temporary, clear_leftovers, discard, make_folder, temporary

_NAMED = 3  # foreign files that a message names
MARK, FORMAT = "engram-work.json", "engram-work"


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of an artifact, as paths in its folder; `optional` ones may be missing."""

    needed: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()

    @property
    def files(self) -> frozenset[str]:
        """Return all files that belong to the artifact."""
        return self.needed | self.optional


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of artifact: `name` for messages, and how to list the files of one.

    `listing(path)` parses the marker: it gives None for anything that engram did not finish there.
    An artifact that is a single file has an empty Listing and `folder` False. `last`: the file of
    a folder without which it does not load, where it may be written to an address.
    """

    name: str
    listing: Callable[[Path], Listing | None]
    folder: bool = True
    last: str | None = None

    def problem(self, path: Path) -> str | None:
        """Return why `path` may not be replaced or removed, None when it may: then it is empty, or
        an artifact of this kind with nothing else in it."""
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
        """Return what is wrong with an artifact at `path` that was just written, None when nothing
        is."""
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
    """Return what `folder` holds beyond the files and folders that belong to it, in words; None
    when nothing. Both are asked about paths in the folder. A link belongs to nothing."""
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
    """Raise OutputError when `path` may not be written; `option` names the place.

    That is when it is an address or a symbolic link, when its folder may not be written, when it is
    or holds one of the `inputs`, when it exists and `force` is not given, and when `kind` does not
    allow to replace it.
    """
    address = address_of(path)
    if address is not None:
        raise OutputError(
            f"{address} is an address, and this output is written to a path on this machine",
            f"give a path with {option}, then upload what lies there",
        )
    elsewhere = f"write elsewhere with {option}"
    check_name(path, option=option)
    if path.is_symlink():
        raise OutputError(
            f"{path} is a symbolic link", f"give the place that it points to, or {elsewhere}"
        )
    _check_folder(path, elsewhere)
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


def _check_folder(path: Path, elsewhere: str) -> None:
    """Raise OutputError when the nearest folder that is there may not be written."""
    folder = path.parent
    while not os.path.lexists(folder) and folder.parent != folder:
        folder = folder.parent
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {folder}", elsewhere)


def check_name(path: Path, *, option: str = "--out") -> None:
    """Raise OutputError for a path such as `.`, next to which nothing can be written."""
    if path.name in ("", ".."):
        raise OutputError(f"{path} names no new file or folder", f"write elsewhere with {option}")


def check_inputs(
    path: Path, inputs: Iterable[str | os.PathLike[str] | None], *, option: str = "--out"
) -> None:
    """Raise OutputError when what is at `path` is, or holds, something that is read."""
    try:
        out = os.stat(path)
    except OSError:
        return
    met: set[str] = set()
    for each in inputs:
        if each is None or address_of(os.fspath(each)) is not None:
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


@contextmanager
def new_file(path: Path, kind: Kind, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary file that is moved to `path` when the block ends well.

    With `force` it replaces a file of this `kind`. Raises OutputError as `new_folder` does.
    """
    with _new(path, kind, force, folder=False) as part:
        yield part


@contextmanager
def new_folder(path: Path, kind: Kind, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary folder that is moved to `path` when the block ends well.

    With `force` it replaces an artifact of this `kind`, and at every
    moment either the old or the new one is at `path`. Raises OutputError when something else is at
    `path`, at the start or by the end, or when the system refuses.
    """
    with _new(path, kind, force, folder=True) as part:
        yield part


@contextmanager
def _new(path: Path, kind: Kind, force: bool, *, folder: bool) -> Iterator[Path]:
    clear_output(path, kind)
    check_output(path, kind, force=force)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path, folder=folder) as new:
            yield new.content
            problem = kind.unfinished(new.content)
            if problem is not None:
                raise OutputError(
                    f"{path} was changed while it was being written: it {problem}", "run it again"
                )
            _flush(new.content)
            _put(new, path, kind, force)


def prepare_output(
    path: Path,
    kind: Kind,
    *,
    force: bool,
    option: str = "--out",
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    dry_run: bool = False,
) -> None:
    """Check the output of a command before any work, as `check_output` does.

    Unless it is a `dry_run`, what killed runs left next to `path` is removed first.
    """
    if not dry_run:
        clear_output(path, kind)
    check_output(path, kind, force=force, option=option, inputs=inputs)


def clear_output(path: Path, kind: Kind) -> None:
    """Remove what runs that were killed left next to the output `path`."""
    clear_leftovers(path, lambda displaced: kind.problem(displaced) is None)


def _put(new: Temporary, path: Path, kind: Kind, force: bool) -> None:
    """Move what was written to `path`, in one step with the check of what is there by now."""
    try:
        rename_new(new.content, path)
    except FileExistsError:
        if not force:
            raise OutputError(
                f"{path} appeared while it was being written, and is kept",
                "move it away, or write elsewhere with --out",
            ) from None
        replace(new, new.content, path, kind)
    fsync_folder(path.parent)


def replace(new: Temporary, whole: Path, path: Path, kind: Kind) -> None:
    """Put `whole` in the place of the artifact at `path`, which then goes by way of `new`.

    Raises OutputError when what is at `path` is not to be replaced; it stays there.
    """
    if exchange(whole, path):
        fsync_folder(path.parent)
        problem = kind.problem(whole)
        if problem is not None:
            exchange(whole, path)
            raise _kept(path, problem)
        new.discard(whole)
        return
    problem = kind.problem(path)
    if problem is not None:
        raise _kept(path, problem)
    if not kind.folder and path.is_file():
        os.replace(whole, path)
        return
    os.rename(path, new.old)
    problem = kind.problem(new.old)
    if problem is not None:
        rename_new(new.old, path)
        raise _kept(path, problem)
    rename_new(whole, path)
    fsync_folder(path.parent)
    new.discard(new.old)


def _kept(path: Path, problem: str) -> OutputError:
    return OutputError(
        f"{path} was changed while it was being written: it {problem}, and is kept",
        "move it away, or write elsewhere with --out",
    )


def _flush(path: Path) -> None:
    """Write a file, or all files of a folder, to the disk."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    for each in files:
        with each.open("rb") as written:
            os.fsync(written.fileno())
    for folder in {each.parent for each in files} - {path.parent}:
        fsync_folder(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A kind of unfinished work: its `name`, and the names its `files` may have."""

    name: str
    files: re.Pattern[str]

    def has_mark(self, folder: Path) -> bool:
        """Return whether `folder` is no link and has the mark of this kind."""
        if folder.is_symlink() or (folder / MARK).is_symlink():
            return False
        try:
            said = read_json(folder / MARK, "a mark")
        except (InputError, ArtifactError):
            return False
        return (said.get("format"), said.get("work")) == (FORMAT, self.name)

    def problem(self, folder: Path) -> str | None:
        """Return why `folder` may not be worked in or removed, None when it may."""
        if not self.has_mark(folder):
            return "was not made by engram"
        try:
            return foreign_files(folder, self._is_own, lambda _: False)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def _is_own(self, name: str) -> bool:
        return name == MARK or self.files.fullmatch(name) is not None


def open_work(folder: Path, work: Work) -> None:
    """Make `folder`, or take the one that is there. Raises OutputError if it has no such mark."""
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
    """Remove `folder`: only the files of `work` if it holds others, nothing if it has no mark."""
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
