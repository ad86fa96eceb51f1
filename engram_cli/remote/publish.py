"""Puts a finished artifact into an object store, so that it never loads half-written.

Every object appears whole, as these stores have it. The object without which nothing loads comes
last, and only where there is none. Nothing that is at an address is replaced or removed, but for
the mark that says that engram is writing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from engram_cli.errors import OutputError
from engram_cli.files import canonical_json
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.session import reason_of
from engram_cli.remote.store import S3_OPTIONS, filesystem

MARK = "engram-upload.json"
_IN_FLIGHT = 8
_ELSEWHERE = "write to another address with --out, or remove it with the tools of your store"
_READ_ONLY = {
    "http": "a web server is only read",
    "https": "a web server is only read",
    "hf": "the Hub is written by its own tools",
}


class Destination:
    """An address that an artifact is to be put at. `name`: what the artifact is, for messages."""

    def __init__(self, address: str, name: str) -> None:
        """Raises OutputError for a store that cannot be written, DependencyError, InputError."""
        protocol = address.partition(":")[0].lower()
        if protocol in _READ_ONLY or protocol == "file":
            reason = _READ_ONLY.get(protocol, "it is a path on this machine")
            raise OutputError(
                f"{address} cannot be written: {reason}",
                "give a path with --out, or an address such as s3:// or gs://",
            )
        options: dict[str, Any] = {**S3_OPTIONS} if protocol in ("s3", "s3a") else {}
        self.address, self.name = address.rstrip("/"), name
        self._system, path = filesystem(self.address, **options)
        self._path = path.rstrip("/")

    def check(self) -> None:
        """Raise OutputError where something is at the address that no interrupted run left."""
        names = self._call(self._names)
        if names and MARK not in names:
            raise OutputError(
                f"{self.address} already exists, and nothing is replaced at an address", _ELSEWHERE
            )
        if names and self._call(lambda: self._system.cat_file(self._mark)) != self._said():
            raise OutputError(
                f"{self.address} holds another upload that was interrupted", _ELSEWHERE
            )

    def begin(self) -> None:
        """Mark the address, which also shows that it may be written. Raises OutputError."""
        self._call(lambda: self._system.pipe_file(self._mark, self._said()))

    @property
    def _mark(self) -> str:
        return f"{self._path}/{MARK}"

    def _said(self) -> bytes:
        return canonical_json({"format": "engram-upload", "artifact": self.name})

    def give_up(self) -> None:
        """Remove the mark of a run that has put nothing at the address."""
        with suppress(Exception):
            if self._names() == [MARK]:
                self._system.rm_file(self._mark)

    def put_file(self, source: Path) -> None:
        """Put a file at the address, in one step. Raises OutputError."""
        self._call(lambda: self._put(source, self._path, new=True))

    def put_folder(
        self, folder: Path, names: Sequence[str], last: str, progress: Progress = SILENT
    ) -> None:
        """Put the files `names` of a folder at the address, then `last`. Raises OutputError."""
        rest = [name for name in names if name != last]
        sizes = {name: (folder / name).stat().st_size for name in (*rest, last)}
        progress.start("upload", sum(sizes.values()), "bytes")

        def put(name: str, *, new: bool = False) -> None:
            self._put(folder / name, f"{self._path}/{name}", new=new)
            progress.advance(sizes[name])

        def put_all() -> None:
            with ThreadPoolExecutor(_IN_FLIGHT) as pool:
                list(pool.map(put, rest))
            self._compare({name: sizes[name] for name in rest})
            put(last, new=True)
            self._system.rm_file(self._mark)

        self._call(put_all)

    def _compare(self, sizes: Mapping[str, int]) -> None:
        """Raise OSError for an object of another size, OutputError for objects of others."""
        self._system.invalidate_cache()
        listed = self._system.find(self._path, detail=True)
        inside = f"{self._path.lstrip('/')}/"
        found = {
            str(name).lstrip("/").removeprefix(inside): int(about["size"])
            for name, about in listed.items()
        }
        for name, size in sizes.items():
            if found.get(name) != size:
                raise OSError(f"{name} has {found.get(name, 0):,} bytes there, not {size:,}")
        others = sorted(found.keys() - sizes.keys() - {MARK})
        if others:
            raise OutputError(
                f"{self.address} holds {others[0]}, which this run did not write", _ELSEWHERE
            )

    def _put(self, source: Path, target: str, *, new: bool) -> None:
        how = {"mode": "create"} if new else {}
        try:
            self._system.put_file(str(source), target, **how)
        except TypeError:  # a store that does not know it
            self._system.put_file(str(source), target)

    def _names(self) -> list[str]:
        """Return the names right below the address; its own where it is an object."""
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._path, detail=False)
        except FileNotFoundError:
            return []
        return sorted({str(each).rstrip("/").rpartition("/")[2] for each in found})

    def _call(self, call: Any) -> Any:
        try:
            return call()
        except FileExistsError:
            raise OutputError(
                f"{self.address} appeared while it was being written, and is kept",
                "write to another address with --out",
            ) from None
        except OutputError:
            raise
        except Exception as error:  # packages raise anything
            raise OutputError(
                f"cannot write {self.address}: {reason_of(error)}",
                "check the address and your access to it",
            ) from None
