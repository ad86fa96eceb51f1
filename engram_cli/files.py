"""Reads and writes single files: JSON, digests, addresses, and renames that replace nothing.

Every artifact is described in JSON, and every one of these descriptions is read through
`parse_json`, because it may come from anywhere.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from engram_cli.errors import ArtifactError, InputError, OutputError

PART = ".part"
MAX_JSON_BYTES = 256 * 2**20  # the manifest of the largest table has 30 MB
MAX_DEPTH = 64  # lists in lists; our own documents reach 8
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
# Protocols that are addresses even without a slash after the colon.
_STORES = "s3|s3a|gs|gcs|hf|abfs|az|http|https|ftp|ssh"
_ADDRESS = re.compile(rf"({_STORES}):(/*)|([A-Za-z][A-Za-z0-9+.-]+):(/+)", re.IGNORECASE)
_HINTS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EFBIG: "files may not grow that large: raise the limit (ulimit -f)",
    errno.EROFS: "the file system is read-only: write to another place",
    errno.EACCES: "no permission: write to another place",
    errno.EPERM: "no permission: write to another place",
}

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_RANGE_WRITE = 2  # SYNC_FILE_RANGE_WRITE
START_BYTES = 2**25  # written before the disk is asked to begin, which all wait for at the end
_UNSUPPORTED = frozenset((errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP))
_NO_LINKS = frozenset((errno.EPERM, errno.EMLINK, *_UNSUPPORTED))


def address_of(path: Path | str) -> str | None:
    """Return the address that was meant by `path`, None for a path on this machine.

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
    """Return `path` on this machine. Raises InputError where it is an address."""
    address = address_of(path)
    if address is not None:
        raise InputError(
            f"{address} is an address, and a path on this machine is needed",
            "give a path; the functions of commands, such as engram_cli.inspect, take addresses",
        )
    return Path(path)


def sha256_bytes(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of the parts, one after another, as "sha256:<hex>"."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        errors="surrogateescape"  # file names need not be UTF-8
    )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises ArtifactError naming `what` when it is not one."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
            raise InputError(f"{path} is no file", f"it should hold {what}")
        if about.st_size > MAX_JSON_BYTES:
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


def parse_json(raw: bytes) -> Any:
    """Return the JSON value in `raw`. Raises ValueError, and nothing else, for what is none.

    A text with half a surrogate pair cannot be written as UTF-8, lists nested without end cannot be
    copied, and of a key that comes twice readers take either value, so all are refused here rather
    than wherever they are used.
    """
    try:
        text = raw.decode(json.detect_encoding(raw))
        value = json.loads(text, object_pairs_hook=_without_twins)
        if not _is_shallow(value):
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except UnicodeEncodeError:
        raise ValueError("a text in it holds half a surrogate pair") from None
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key comes twice")
    return made


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return True
    return False


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError, also for a pipe or device, which might never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(handle, "rb")


def user_cache(name: str) -> Path:
    """Return a folder of the user's cache: under XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "engram-tables", name)


def is_at(handle: int, path: Path) -> bool:
    """Return whether the open file `handle` is still the one that has the name `path`."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


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
        hint = _HINTS.get(error.errno or 0, "check the path and the disk")
        raise OutputError(f"cannot write {path}: {error.strerror or error}", hint) from error


@contextmanager
def inner_file(path: Path) -> Iterator[Path]:
    """Give a temporary file that is renamed onto `path` when the block ends well.

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


def rename_new(source: Path, target: Path) -> None:
    """Rename `source` to `target`. Raises FileExistsError when there is something at `target`."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    if stat.S_ISDIR(os.lstat(source).st_mode):
        try:
            os.rename(source, target)  # a folder replaces no file, and no folder with files
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.rename(source, target)
    else:
        os.unlink(source)


def exchange(one: Path, two: Path) -> bool:
    """Exchange what two names stand for, in one step; False where the system cannot.

    Raises FileNotFoundError when one of them is missing.
    """
    return _renameat2(one, two, _EXCHANGE)


def start_writing(handle: int, begin: int, size: int) -> bool:
    """Let the system begin to write bytes of a file to the disk, and wait until they are queued.

    `size` 0: all behind `begin`. Return whether it does. Otherwise Linux begins when a tenth of the
    memory waits for the disk. Errors of the disk are left to fsync.
    """
    call = _libc("sync_file_range", ctypes.c_int, *[ctypes.c_int64] * 2, ctypes.c_uint)
    return call is not None and call(handle, begin, size, _RANGE_WRITE) == 0


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    name = ctypes.c_char_p
    call = _libc("renameat2", ctypes.c_int, name, ctypes.c_int, name, ctypes.c_uint)
    if call is None:
        return False
    sys.audit("os.rename", str(source), str(target), -1, -1)  # as os.rename says it
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


@lru_cache
def _libc(name: str, *types: Any) -> Any:
    """Return a function of Linux's libc with parameters of `types`, None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if call is not None:
        call.argtypes, call.restype = types, ctypes.c_int
    return call


def preadv(handle: int, buffers: Sequence[Any], offset: int) -> int:
    """Do what `os.preadv` does, where the system (some versions of macOS) has none."""
    done = 0
    for buffer in buffers:
        raw = os.pread(handle, len(buffer), offset + done)
        buffer[: len(raw)] = raw
        done += len(raw)
        if len(raw) < len(buffer):
            break
    return done
