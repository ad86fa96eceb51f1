"""Lists and reads files by name: those of this machine, and those behind addresses.

What a store's package raises is anything at all, so every call is wrapped: a CorpusError names the
address.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from engram_cli.corpus.base import CorpusFile, Neighbours, Stamp
from engram_cli.corpus.stamps import local_file
from engram_cli.corpus.text import MOST_DESCRIPTION, check_size, loads
from engram_cli.errors import CorpusError, EngramError
from engram_cli.remote.hub import HubStore
from engram_cli.remote.locate import hub_path
from engram_cli.remote.path import RemotePath
from engram_cli.remote.session import behind_missing, failure_text, is_unreached
from engram_cli.remote.store import filesystem, glob_pattern, version_of

_BUFFER = 2**18
_HUB = "hf://"


class Storage:
    """Lists and reads the files of this machine. All methods raise CorpusError."""

    distant = False  # whether reading the start of a file is slow

    def kind(self, name: str) -> str | None:
        """Return "file", "folder", "thing" for a pipe or device, or None for nothing."""
        if os.path.isdir(name):
            return "folder"
        if os.path.isfile(name):
            return "file"
        return "thing" if os.path.exists(name) else None

    def matches(self, pattern: str) -> list[str] | None:
        """Return the files that match, sorted; None if `pattern` has no wildcard."""
        if not glob.has_magic(pattern):
            return None
        return [name for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name)]

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder, sorted.

        Links to folders count as neither, so that no loop is walked.
        """
        with _readable(folder, "folder"), os.scandir(folder) as found:
            inside = sorted(found, key=lambda entry: entry.name)
        return (
            [entry.name for entry in inside if entry.is_dir(follow_symlinks=False)],
            [entry.name for entry in inside if entry.is_file()],
        )

    def join(self, folder: str, name: str) -> str:
        """Return the full name of `name` in `folder`."""
        return str(Path(folder, name))

    def key(self, name: str) -> str:
        """Return one key for all names of the same file."""
        return os.path.realpath(name)

    def head(self, name: str, length: int) -> bytes:
        """Return the first `length` bytes of a file."""
        with _readable(name, "file"), open(name, "rb") as stream:
            return stream.read(length)

    def file(self, name: str, format_: str) -> CorpusFile:
        """Return the corpus file of that name; the size of a pipe is unknown."""
        with _readable(name, "file"):
            return local_file(Path(name), format_)


@contextmanager
def _readable(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorpusError(f"cannot read {name}: {error.strerror}", f"check the {what}") from None


class RemoteStorage(Storage):
    """Lists and reads files behind addresses, such as s3://bucket/key."""

    distant = True

    def kind(self, name: str) -> str | None:
        system, path = _system(name)
        with _named(name):
            try:
                return "folder" if system.info(path)["type"] == "directory" else "file"
            except FileNotFoundError as error:
                if behind_missing(error) is not None:
                    raise
                return None

    def matches(self, pattern: str) -> list[str] | None:
        if not glob.has_magic(pattern) or pattern.startswith("http"):
            return None
        system, path = _system(pattern)
        with _named(pattern):
            found = system.glob(path, detail=True)
            return sorted(
                str(system.unstrip_protocol(name))
                for name, about in found.items()
                if about["type"] == "file"
            )

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        system, path = _system(folder)
        with _named(folder):
            found = system.ls(path, detail=True)
            here = str(system._strip_protocol(path)).rstrip("/")
            names = {
                kind: sorted(
                    about["name"].rstrip("/").rpartition("/")[2]
                    for about in found
                    if about["type"] == kind and str(about["name"]).rstrip("/") != here
                )
                for kind in ("directory", "file")
            }
        return names["directory"], names["file"]

    def join(self, folder: str, name: str) -> str:
        return f"{folder.rstrip('/')}/{name}"

    def key(self, name: str) -> str:
        system, path = _system(name)
        return str(system.unstrip_protocol(path))

    def head(self, name: str, length: int) -> bytes:
        with open_remote(name) as stream:
            return stream.read(length)

    def file(self, name: str, format_: str) -> CorpusFile:
        return remote_file(name, format_)


class HubStorage(Storage):
    """Lists and reads the repositories of the Hugging Face Hub; what is in its cache is read there.

    A name is hf://datasets/org/name/file, and stays so wherever the file is read: documents are
    known by it.
    """

    distant = True

    def kind(self, name: str) -> str | None:
        with _named(name):
            path = _hub_file(name)
            return "folder" if path.is_dir() else "file" if path.is_file() else None

    def matches(self, pattern: str) -> list[str] | None:
        if not glob.has_magic(pattern):
            return None
        root, inside = _hub_parts(pattern)
        with _named(pattern):
            wanted = glob_pattern(inside)
            files = _hub_store(_hub_root(root)).files()
            return sorted(f"{root}/{name}" for name in files if wanted.fullmatch(name))

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        with _named(folder):
            path = _hub_file(folder)
            found = dict(path.session.entries(path.key) or {})
        if not path.key:
            found.pop("README.md", None)  # the card of the data set
        return (
            sorted(name for name, each in found.items() if each.kind == "folder"),
            sorted(name for name, each in found.items() if each.kind == "file"),
        )

    def join(self, folder: str, name: str) -> str:
        return f"{folder.rstrip('/')}/{name}"

    def key(self, name: str) -> str:
        return name.rstrip("/")

    def head(self, name: str, length: int) -> bytes:
        with open_remote(name) as stream:
            return stream.read(length)

    def file(self, name: str, format_: str) -> CorpusFile:
        return remote_file(name, format_)


def _hub_parts(name: str) -> tuple[str, str]:
    """Return the repository in a name, hf://datasets/org/name@revision, and what is behind it."""
    parts = name.removeprefix(_HUB).split("/")
    count = 3 if parts[0] in ("datasets", "models") else 2
    if parts[count - 1 : count] and parts[count - 1].endswith("@refs"):
        count += 2  # such as refs/pr/3
    return _HUB + "/".join(parts[:count]), "/".join(parts[count:])


@lru_cache(maxsize=16)
def _hub_root(root: str) -> RemotePath:
    """Open a repository, whose list of files is asked for once."""
    return hub_path(root)


def _hub_file(name: str) -> RemotePath:
    root, inside = _hub_parts(name)
    path = _hub_root(root)
    return path / inside if inside else path


def _hub_store(path: RemotePath) -> HubStore:
    store = path.session.store
    assert isinstance(store, HubStore)
    return store


LOCAL = Storage()
REMOTE = RemoteStorage()
HUB = HubStorage()


def storage_of(name: str) -> Storage:
    """Return the storage that a name belongs to."""
    if name.startswith(_HUB):
        return HUB
    return REMOTE if is_remote(name) else LOCAL


def is_remote(name: str) -> bool:
    """Return whether `name` is an address and not a path."""
    protocol, mark, _ = name.partition("://")
    return bool(mark) and "/" not in protocol and len(protocol) > 1


def read_object(name: str, storage: Neighbours) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one for anything else. Raises CorpusError."""
    raw = storage.head(name, MOST_DESCRIPTION + 1)
    try:
        check_size(raw, name)
        about = loads(raw)
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


@contextmanager
def open_remote(url: str) -> Iterator[BinaryIO]:
    """Open a remote file; it can be sought in where the store can. Raises CorpusError."""
    if url.startswith(_HUB):
        with _named(url):
            inner = _hub_file(url).open("rb")
    else:
        system, path = _system(url)
        with _named(url):
            inner = system.open(path, "rb")
    with io.BufferedReader(_Remote(inner, url), _BUFFER) as stream:
        yield cast(BinaryIO, stream)


def remote_file(url: str, format_: str) -> CorpusFile:
    """Describe a remote file; its size is None where the store does not say. Raises CorpusError."""
    if url.startswith(_HUB):
        with _named(url):
            found = _hub_file(url)
            stamp = Stamp(size=found.stat().st_size, changed=_hub_store(found).commit or "")
        return CorpusFile(
            name=url, path=None, size=stamp.size, format=format_, url=url, stamp=stamp
        )
    system, path = _system(url)
    with _named(url):
        about = system.info(path)
    size: int | None = about.get("size")
    stamp = Stamp(size=size, changed=version_of(about))
    return CorpusFile(name=url, path=None, size=size, format=format_, url=url, stamp=stamp)


def _system(url: str) -> tuple[Any, str]:
    # A signature is sent as it was typed; fsspec would decode its slashes.
    as_typed = {"encoded": True} if url.startswith(("http:", "https:")) and "%" in url else {}
    try:
        return filesystem(url, CorpusError, **as_typed)
    except EngramError:
        raise
    except Exception as error:
        raise _unreadable(url, error) from None


@contextmanager
def _named(url: str) -> Iterator[None]:
    try:
        yield
    except EngramError:
        raise
    except FileNotFoundError as error:
        if (other := behind_missing(error)) is not None:
            raise _unreadable(url, other) from None
        raise CorpusError(f"corpus not found: {url}", "check the address") from None
    except Exception as error:
        raise _unreadable(url, error) from None


def _unreadable(url: str, error: BaseException) -> CorpusError:
    if is_unreached(error):
        return CorpusError(*failure_text(url, error))
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CorpusError(f"cannot read {url}: {reason}", "check the address and your access to it")


class _Remote(io.RawIOBase):
    """A file of a store, its errors as CorpusErrors."""

    def __init__(self, inner: Any, url: str) -> None:
        self._inner = inner
        self._url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._inner.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _named(self._url):
            return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self._inner.tell())

    def readinto(self, buffer: Any) -> int:
        with _named(self._url):
            part = self._inner.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        if not self.closed:
            super().close()
            with _named(self._url):
                self._inner.close()
