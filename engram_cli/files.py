"""Files and folders that appear whole or not at all, and digests of them.

Every output goes through here: written in a temporary folder next to its place, flushed to the
disk, then moved there in one step. What the operating system refuses becomes an `OutputError`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engram_cli.addresses import address_of as address_of
from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.ownership import Kind, check_output
from engram_cli.renaming import exchange, rename_new
from engram_cli.temporary import Temporary, clear_leftovers, temporary
from engram_cli.untrusted import parse_json

PART = ".part"

MAX_JSON_BYTES = 256 * 2**20  # the manifest of the largest table has 30 MB
_MENDS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EFBIG: "files may not grow that large: raise the limit (ulimit -f)",
    errno.EROFS: "the file system is read-only: write elsewhere with --out",
    errno.EACCES: "no permission: write elsewhere with --out",
    errno.EPERM: "no permission: write elsewhere with --out",
}


def local_path(path: Path | str) -> Path:
    """`path` on this machine. Raises InputError where it is an address."""
    address = address_of(path)
    if address is not None:
        raise InputError(
            f"{address} is an address, and a path on this machine is needed",
            "download it first; only a corpus is read from addresses",
        )
    return Path(path)


def sha256_bytes(*parts: bytes | memoryview) -> str:
    """The SHA-256 of the parts, one after another, as "sha256:<hex>"."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises ArtifactError naming `what` when it is not one."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ArtifactError(f"{path} is too large: it cannot be {what}", "check the path")
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{what} not found: {path}", "check the path") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the path") from None
    except ValueError as error:
        unread = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
        raise ArtifactError(
            f"{path} is not JSON" if unread else f"{path} is refused: {error}",
            f"it should hold {what}; make it again",
        ) from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds no JSON object", f"it should hold {what}; make it again")
    return value


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says while writing `path` into an OutputError."""
    try:
        yield
    except OSError as error:
        mend = _MENDS.get(error.errno or 0, "check the path and the disk")
        raise OutputError(f"cannot write {path}: {error.strerror or error}", mend) from error


@contextmanager
def new_file(path: Path, kind: Kind, *, force: bool = False) -> Iterator[Path]:
    """A temporary file, moved to `path` when the block ends well; with `force` it replaces a file
    of this `kind`. Raises OutputError as `new_folder` does."""
    with _new(path, kind, force, folder=False) as part:
        yield part


@contextmanager
def new_folder(path: Path, kind: Kind, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder, moved to `path` when the block ends well.

    With `force` it replaces an artifact of this `kind` (`engram_cli.ownership`), and at every
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
    """What a command does before any work: `check_output`, and unless it is a `dry_run` it first
    removes what runs that were killed left next to `path`."""
    if not dry_run:
        clear_output(path, kind)
    check_output(path, kind, force=force, option=option, inputs=inputs)


def clear_output(path: Path, kind: Kind) -> None:
    """Remove what runs that were killed left next to the output `path`."""
    clear_leftovers(path, lambda displaced: kind.problem(displaced) is None)


@contextmanager
def inner_file(path: Path) -> Iterator[Path]:
    """A temporary file, renamed onto `path` when the block ends well.

    Only for a folder that engram made and one process works in: it replaces what is at `path`.
    """
    part = path.with_name(path.name + PART)
    with output_errors(path):
        try:
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(part, path)
            fsync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


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
