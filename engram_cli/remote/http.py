"""Reads files of a web server in ranges, over the connections of fsspec's http filesystem.

fsspec itself would download a whole file from a server that ignores ranges, and not notice one that
changes, so the requests are made here. A key is a path below the host, as it was typed for the root
and as it is named in files below that.
"""

from __future__ import annotations

import re
from asyncio import IncompleteReadError
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from engram_cli.errors import DependencyError, InputError
from engram_cli.remote.session import BLOCK_BYTES
from engram_cli.remote.store import (
    CONNECT_SECONDS,
    EXTRA,
    FOLDER,
    READ_SECONDS,
    ChangedError,
    Entry,
    RangesIgnoredError,
    Traffic,
    filesystem,
)

T = TypeVar("T")

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_TYPED = "%/:@!$&'()*+,;=?~"  # what stays as it is in an address that was typed
_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
_LISTING_BYTES = 4 * 2**20
# A root that is not there, and has no such suffix, may be a folder that the server does not show.
FILE_SUFFIXES = frozenset(
    (".gguf", ".safetensors", ".json", ".pleo", ".plepatch", ".bin", ".pt", ".pth", ".parquet")
)


class HttpStore:
    """A web server. `root`: the key of what was given; its query is sent for that file alone."""

    lists = False

    def __init__(self, url: str, traffic: Traffic) -> None:
        parts = urlsplit(url)
        if not parts.hostname:
            raise InputError(f"{url} names no host", "give an address such as https://host/folder")
        try:
            import aiohttp
        except ImportError:
            raise DependencyError(f"{url} needs the package aiohttp", EXTRA) from None
        self.traffic = traffic
        self.hint = "give an address with its signature; for the Hugging Face Hub hf://org/name"
        host = parts.netloc.rpartition("@")[2]
        self.origin = f"{parts.scheme.lower()}://{host}"
        self.root, self._query = parts.path.strip("/"), parts.query
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        options: dict[str, Any] = {"timeout": timeout, "trust_env": True}  # proxies
        # aiohttp sends it to no other host, wherever a redirect leads.
        self._headers = {"Accept-Encoding": "identity"}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = f"Basic {b64encode(login).decode()}"
        self._system, _ = filesystem(self.origin, client_kwargs=options)

    def entry(self, key: str) -> Entry | None:
        """Return what there is at `key`, None for nothing."""
        found: Entry | None = self._run(self._entry, key)
        return found

    def entries(self, key: str) -> Mapping[str, Entry] | None:
        """Return None: a page has names alone."""
        return None

    def names(self, key: str) -> list[str] | None:
        """Return the names that the page of a folder links to; None where there is no page."""
        page: str | None = self._run(self._page, key)
        return None if page is None else _names(page)

    def read(self, key: str, begin: int, end: int, entry: Entry) -> bytes:
        """Read a range of the version that `entry` describes."""
        raw: bytes = self._run(self._read, key, begin, end, entry)
        return raw

    def local(self, key: str) -> Path | None:
        """Return None: nothing is kept here."""
        return None

    def may_retry(self, error: Exception) -> bool:
        """Return whether the server was busy, or the connection was cut after it stood."""
        import aiohttp

        if isinstance(error, aiohttp.ClientResponseError):
            return error.status in _AGAIN
        if isinstance(error, aiohttp.ClientConnectorError):
            return False
        cut = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, IncompleteReadError)
        return isinstance(error, cut)

    def _run(self, call: Callable[..., Awaitable[T]], *given: Any) -> T:
        from fsspec.asyn import sync

        done: T = sync(self._system.loop, call, *given)
        return done

    def _url(self, key: str) -> Any:
        import yarl

        path = quote(key)
        if key.startswith(self.root):  # which was typed, and may be quoted already
            path = quote(self.root, _TYPED) + quote(key.removeprefix(self.root))
        query = f"?{quote(self._query, _TYPED)}" if self._query and key == self.root else ""
        return yarl.URL(f"{self.origin}/{path}{query}", encoded=True)

    async def _entry(self, key: str) -> Entry | None:
        """Ask with HEAD; where that is not allowed, for one byte."""
        session = await self._system.set_session()
        self.traffic.add(0)
        async with session.head(
            self._url(key), allow_redirects=True, headers=self._headers
        ) as answer:
            if answer.status not in (400, 403, 405, 501):
                return self._told(key, answer, answer.headers.get("Content-Length"))
        headers = {**self._headers, "Range": "bytes=0-0"}
        self.traffic.add(0)
        async with session.get(self._url(key), headers=headers) as answer:
            match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            size = match[3] if match else answer.headers.get("Content-Length")
            found = self._told(key, answer, size)
            answer.close()  # where the whole file is on its way
            return found

    def _told(self, key: str, answer: Any, size: str | None) -> Entry | None:
        self.traffic.add(0, len(answer.history))  # redirects
        is_root = key == self.root
        hidden = is_root and PurePosixPath(key).suffix.lower() not in FILE_SUFFIXES
        if answer.status in (401, 403) and not (hidden and answer.status == 403):
            raise PermissionError(13, "access is denied", str(self._url(key)))
        if answer.status in (403, 404, 410):
            return FOLDER if hidden else None
        answer.raise_for_status()
        page = answer.headers.get("Content-Type", "").startswith("text/html")
        if answer.url.path.endswith("/") or (page and not key.endswith((".html", ".htm"))):
            return FOLDER
        if size is None or not size.isdecimal():
            raise RangesIgnoredError
        return Entry("file", int(size), _version(answer.headers))

    async def _page(self, key: str) -> str | None:
        session = await self._system.set_session()
        url = self._url(f"{key}/" if key else "")
        self.traffic.add(0)
        async with session.get(url, headers=self._headers) as answer:
            if answer.status in (401, 403, 404):
                return None
            answer.raise_for_status()
            if not answer.headers.get("Content-Type", "").startswith("text/html"):
                answer.close()
                return None
            raw = bytearray()
            async for piece in answer.content.iter_chunked(BLOCK_BYTES):
                raw += piece
                if len(raw) > _LISTING_BYTES:
                    answer.close()
                    break
            self.traffic.add(len(raw), len(answer.history))
            return raw.decode("utf-8", "replace")

    async def _read(self, key: str, begin: int, end: int, entry: Entry) -> bytes:
        session = await self._system.set_session()
        headers = {**self._headers, "Range": f"bytes={begin}-{end - 1}"}
        self.traffic.add(0)
        async with session.get(self._url(key), headers=headers) as answer:
            if answer.status in (401, 403):
                raise PermissionError(13, "access is denied", str(self._url(key)))
            if answer.status in (404, 410, 416):
                raise ChangedError
            answer.raise_for_status()
            whole = begin == 0 and end == entry.size
            match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            size = int(match[3]) if match else int(answer.headers.get("Content-Length", -1))
            if answer.status != 206 and not whole:
                answer.close()
                raise RangesIgnoredError
            told = _version(answer.headers)
            if size != entry.size or (told and entry.version and told != entry.version):
                answer.close()
                raise ChangedError
            if match and (int(match[1]), int(match[2])) != (begin, end - 1):
                answer.close()
                raise RangesIgnoredError
            raw = await answer.content.readexactly(end - begin)
            self.traffic.add(len(raw), len(answer.history))
            return bytes(raw)


def _version(headers: Mapping[str, str]) -> str:
    """Return what tells a file from an earlier one."""
    return (headers.get("ETag") or headers.get("Last-Modified") or "").removeprefix("W/")


class _Links(HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _names(page: str) -> list[str]:
    """Return the names of files and folders right below a page; links to elsewhere are left out."""
    links = _Links()
    links.feed(page)
    names = {unquote(link.removeprefix("./").removesuffix("/")) for link in links.found
             if not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|[/?#]", link)}  # fmt: skip
    return sorted(name for name in names if name not in ("", ".", "..") and "/" not in name)
