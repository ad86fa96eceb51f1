"""Files and folders that appear whole or not at all, and digests of them.

Everything the project writes goes through here: written under a temporary name beside its place,
flushed to the disk, then renamed. What the operating system refuses becomes an `OutputError`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.untrusted import parse_json

MAX_JSON_BYTES = 256 * 2**20  # the manifest of the largest table has 30 MB
_MENDS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EFBIG: "files may not grow that large: raise the limit (ulimit -f)",
    errno.EROFS: "the file system is read-only: write elsewhere with --out",
    errno.EACCES: "no permission: write elsewhere with --out",
    errno.EPERM: "no permission: write elsewhere with --out",
}


# Protocols that are addresses even without a slash after the colon.
_STORES = "s3|s3a|gs|gcs|hf|abfs|az|http|https|ftp|ssh"
_ADDRESS = re.compile(rf"({_STORES}):(/*)|([A-Za-z][A-Za-z0-9+.-]+):(/+)", re.IGNORECASE)


def address_of(path: Path | str) -> str | None:
    """`path` as the address that was meant by it, None for a path on this machine.

    pathlib takes one slash out of s3://bucket/key; it is put back.
    """
    match = _ADDRESS.match(str(path))
    if match is None:
        return None
    protocol, slashes = match[1] or match[3], match[2] or match[4] or ""
    if slashes == "/":
        slashes = "///" if protocol == "file" else "//"
    return f"{protocol}:{slashes}{str(path)[match.end() :]}"


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


def refuse_existing(
    path: Path,
    force: bool,
    is_ours: Callable[[Path], bool] | None = None,
    what: str = "",
    *,
    option: str = "--out",
) -> None:
    """Raises OutputError when `path` is there and `force` is not given; `option` names the place.

    With `is_ours` even `force` replaces only what is such a `what`, or an empty file or folder. An
    address is refused too: a folder called "s3:" helps nobody.
    """
    address = address_of(path)
    if address is not None:
        raise OutputError(
            f"{address} is an address, and only paths on this machine are written",
            f"give a path with {option}, then upload what lies there",
        )
    if not path.exists():
        return
    if not force:
        raise OutputError(
            f"{path} already exists", f"use --force to replace it, or {option} to write elsewhere"
        )
    if is_ours is not None and not _is_empty(path) and not is_ours(path):
        raise OutputError(
            f"{path} is no {what}, so --force does not replace it", f"write elsewhere with {option}"
        )


def _is_empty(path: Path) -> bool:
    if path.is_dir():
        return next(path.iterdir(), None) is None
    return path.is_file() and path.stat().st_size == 0


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says while writing `path` into an OutputError."""
    try:
        yield
    except OSError as error:
        mend = _MENDS.get(error.errno or 0, "check the path and the disk")
        raise OutputError(f"cannot write {path}: {error.strerror or error}", mend) from error


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well.

    Raises OutputError when `path` exists (and not `force`) or cannot be written.
    """
    refuse_existing(path, force)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        handle, name = tempfile.mkstemp(prefix=_part_prefix(path), suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            os.chmod(part, 0o666 & ~_umask())
            os.replace(part, path)
            fsync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed onto it when the block ends well.

    With `force` the old folder is moved aside first and removed after the rename, so that at every
    moment either the old or the new one is whole. Raises OutputError as `new_file` does.
    """
    refuse_existing(path, force)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        part = Path(tempfile.mkdtemp(prefix=_part_prefix(path), suffix=".part", dir=path.parent))
        try:
            yield part
            os.chmod(part, 0o777 & ~_umask())
            for folder, _, names in os.walk(part):
                for name in names:
                    with open(os.path.join(folder, name), "rb") as written:
                        os.fsync(written.fileno())
            replace_folder(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def replace_folder(part: Path, path: Path) -> None:
    """Rename the folder `part` onto `path`; what was there is removed afterwards."""
    old: Path | None = None
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        os.replace(path, old / path.name)
    os.replace(part, path)
    fsync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _part_prefix(path: Path) -> str:
    return f".{path.name}.{platform.node()}-{os.getpid()}."


def _remove_stale(path: Path) -> None:
    """Remove what a process of this machine that was killed left while it wrote `path`."""
    name = re.compile(re.escape(f".{path.name}.{platform.node()}-") + r"([0-9]{1,10})\.[^.]+\.part")
    for left in path.parent.iterdir():
        match = name.fullmatch(left.name)
        if match is None or _is_alive(int(match[1])):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or a number no process has
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
