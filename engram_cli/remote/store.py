"""What a store of files is, and the stores that an fsspec filesystem serves.

The only file that imports `fsspec`. What a store's package raises is anything at all:
`remote.session` turns it into our own errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol

from engram_cli.errors import DependencyError, InputError

EXTRA = "pip install 'engram-tables[remote]'"
CONNECT_SECONDS, READ_SECONDS = 10, 20
_PACKAGES = {"abfs": "adlfs", "az": "adlfs"}
# What the extra brings; urllib's own names of protocols.
_IN_EXTRA = frozenset(("s3", "s3a", "gs", "gcs", "hf", "http", "https"))
# What stores call the version of a file, its digest or the time of its last change.
_VERSIONS = (
    *("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created"),
    *("generation", "VersionId", "md5Hash", "Content-MD5", "blob_id"),
)
_HINTS = {
    "s3": "check your AWS credentials: AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
    "gc": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
}
S3_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"max_attempts": 4, "mode": "standard"},
    }
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a folder of a store; `version` changes with the content, "" where none is told."""

    kind: Literal["file", "folder"]
    size: int = 0
    version: str = ""


FOLDER = Entry("folder")


@dataclass(slots=True)
class Traffic:
    """What was read: bytes, and the requests that were sent for them and for listings."""

    bytes: int = 0
    requests: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, size: int, requests: int = 1) -> None:
        """Count more of both. May run in threads."""
        with self._lock:
            self.bytes += size
            self.requests += requests


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCount:
    """How many bytes were read of a source, and by how many requests; None for local files."""

    bytes: int
    requests: int | None = None


class ChangedError(Exception):
    """A file is not what it was when it was first looked at."""


class RangesIgnoredError(Exception):
    """A server sends the whole file where a range of it was asked for."""


class Store(Protocol):
    """Files by key, a relative path with slashes. Methods may run in threads and raise anything.

    FileNotFoundError and PermissionError mean what they say. `traffic` counts.
    """

    traffic: Traffic
    hint: str  # what to do where access is denied
    lists: bool  # whether `entries` knows every file of a folder, and its size

    def entry(self, key: str) -> Entry | None:
        """Return what there is at `key`, None for nothing."""

    def entries(self, key: str) -> Mapping[str, Entry] | None:
        """Return what is in a folder by name; None where that is not allowed."""

    def names(self, key: str) -> list[str] | None:
        """Return the names in a folder of a store without `entries`; None where there are none."""

    def read(self, key: str, begin: int, end: int, entry: Entry) -> bytes:
        """Read bytes `begin` to `end` of the file that `entry` describes.

        Raises ChangedError for one that has changed since, RangesIgnoredError.
        """

    def local(self, key: str) -> Path | None:
        """Return the copy of a file that this machine has already."""

    def may_retry(self, error: Exception) -> bool:
        """Return whether the same call may do better a little later."""


def filesystem(url: str, error: type[InputError] = InputError, **options: Any) -> tuple[Any, str]:
    """Return the fsspec filesystem of an address, and its path there.

    Raises DependencyError for a package that is missing, `error` for an address that is none.
    """
    protocol = url.partition("://")[0]
    if "::" in url:
        raise error(f"{url}: chained addresses are not supported", "give the address of the files")
    try:
        from fsspec import core  # an extra, and slow to import
    except ImportError:
        raise DependencyError(f"{url} needs the package fsspec", EXTRA) from None
    try:
        system, path = core.url_to_fs(url, **options)
    except ImportError as problem:
        package = _PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else "install the package of this store"
        raise DependencyError(
            f"{url}: {problem}", EXTRA if protocol in _IN_EXTRA else hint
        ) from None
    except ValueError as problem:
        raise error(
            f"{url}: {problem}", "give an address such as s3://, gs:// or hf://, or a path"
        ) from None
    except Exception as problem:  # some connect at once, and raise what their package raises
        raise error(
            f"cannot open {url}: {problem}", "check the address and the network, then run it again"
        ) from None
    return system, str(path)


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a glob with slashes; ** matches folders."""
    from fsspec.utils import glob_translate

    return re.compile(glob_translate(pattern))


def version_of(about: Mapping[str, Any]) -> str:
    """Return the version of a file in what its store tells about it."""
    found = [f"{key}={about[key]}" for key in _VERSIONS if about.get(key) is not None]
    return " ".join(found)


class ObjectStore:
    """A bucket, or whatever has an fsspec filesystem. `url`: without a slash at the end."""

    lists = True

    def __init__(self, url: str, traffic: Traffic) -> None:
        self.traffic, self.url = traffic, url
        self.protocol = url.partition("://")[0]
        self.hint = _HINTS.get(self.protocol[:2], "check your access to the store")
        self._is_s3 = self.protocol in ("s3", "s3a")
        self._options: dict[str, Any] = {**S3_OPTIONS} if self._is_s3 else {}
        self._system, self._path = filesystem(url, **self._options)
        self._system.invalidate_cache()
        self._files: dict[str, Any] = {}  # of S3, opened
        self._first: dict[str, Entry | None] = {}  # what others said before the first read

    def entry(self, key: str) -> Entry | None:
        """Return what there is at `key`, None for nothing."""
        self.traffic.add(0)
        try:
            return _entry(self._signed(lambda: self._system.info(self._at(key))))
        except FileNotFoundError:
            return None

    def entries(self, key: str) -> Mapping[str, Entry] | None:
        """Return what is in a folder by name; None where listing is not allowed."""
        self.traffic.add(0)
        try:
            found = self._signed(lambda: self._system.ls(self._at(key), detail=True))
        except FileNotFoundError:
            return {}
        except PermissionError:
            return None
        here = self._at(key).rstrip("/")
        names = {str(each["name"]).rstrip("/"): _entry(each) for each in found}
        return {name.rpartition("/")[2]: each for name, each in names.items() if name != here}

    def names(self, key: str) -> list[str] | None:
        """Return None: `entries` knows them."""
        return None

    def read(self, key: str, begin: int, end: int, entry: Entry) -> bytes:
        """Read a range, of the version that was first looked at where the store can ask for it."""
        raw = self._matching(key, begin, end, entry) if self._is_s3 else None
        if raw is None:
            first = self._first.setdefault(key, self.entry(key))
            raw = bytes(self._system.cat_file(self._at(key), start=begin, end=end))
            self._system.invalidate_cache(self._at(key))
            if first is None or first.size != entry.size or self.entry(key) != first:
                raise ChangedError
        self.traffic.add(len(raw))
        return raw

    def _matching(self, key: str, begin: int, end: int, entry: Entry) -> bytes:
        """Read a range of an object of S3, with If-Match."""
        if key not in self._files:
            self._files[key] = self._system.open(self._at(key), "rb", cache_type="none")
        opened = self._files[key]
        tag = str(opened.details.get("ETag") or "")
        if opened.size != entry.size or tag not in entry.version:
            raise ChangedError
        try:
            return bytes(opened._fetch_range(begin, end))
        except OSError as error:
            if type(error).__name__ == "FileExpired":
                raise ChangedError from None
            raise

    def local(self, key: str) -> Path | None:
        """Return None: nothing is kept here."""
        return None

    def may_retry(self, error: Exception) -> bool:
        """Return False: these packages retry by themselves."""
        return False

    def _at(self, key: str) -> str:
        return f"{self._path.rstrip('/')}/{key}".rstrip("/")

    def _signed(self, call: Any) -> Any:
        """Call a function; without credentials, ask for what is public."""
        try:
            return call()
        except Exception as error:
            if type(error).__name__ != "NoCredentialsError" or "anon" in self._options:
                raise
            self._options = {**self._options, "anon": True}
            self._system, self._path = filesystem(self.url, **self._options)
            return call()


def _entry(about: Mapping[str, Any]) -> Entry:
    if about["type"] == "directory":
        return FOLDER
    return Entry("file", int(about.get("size") or 0), version_of(about))
