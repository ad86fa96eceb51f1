"""The files of a bundle: `engram.json` read, and what it lists held against what lies there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.files import read_json, sha256_bytes
from engram_cli.outputs import Kind, Listing
from engram_cli.progress import SILENT, Progress

FORMAT = "engram-bundle"
VERSION = 2
DESCRIPTION = "engram.json"
DENSE = "dense.safetensors"
CARD = "README.md"
_CARD_HEAD = b"---\nlibrary_name: engram-tables\n"
VOCABULARY = "vocabulary.safetensors"
MAX_DESCRIPTION_BYTES = 64 * 2**20
MAX_SMALL_BYTES = 8 * 2**30  # dense weights and the vocabulary, which are read into memory

REMAKE = "write the bundle again with engram attach --force"
# Files that a bundle consists of: a folder of somebody's own model has others.
_OWN_NAME = re.compile(
    r"(?:rows|scales|hits)-\d{5,}-of-\d{5,}\.safetensors|(?:dense|vocabulary)\.safetensors"
)
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFiles:
    """What reading all files of a bundle found: a line for each whose digest is another one."""

    files: int
    stored_bytes: int
    problems: tuple[str, ...]


def verify_files(path: str | Path, *, threads: int = 1, progress: Progress = SILENT) -> BundleFiles:
    """Read every file that the description lists and compare its digest.

    Raises what `read_bundle` raises for a description that is not to be trusted.
    """
    listed = ListedFiles(Path(path), read_description(Path(path)))
    progress.start("verify", sum(map(listed.size, listed.names)), "bytes")
    problems = []
    with ThreadPoolExecutor(threads) as pool:
        for name, problem in zip(listed.names, pool.map(listed.problem, listed.names), strict=True):
            progress.advance(listed.size(name))
            if problem is not None:
                problems.append(problem)
    return BundleFiles(
        files=len(listed.names),
        stored_bytes=sum(map(listed.size, listed.names)),
        problems=tuple(problems),
    )


def read_description(folder: Path) -> dict[str, Any]:
    """The JSON of `engram.json`. Raises InputError where there is none, ArtifactError."""
    path = folder / DESCRIPTION
    try:
        size = path.stat().st_size
    except OSError:
        raise InputError(f"no bundle at {folder}", "make one with engram attach") from None
    if size > MAX_DESCRIPTION_BYTES:
        raise ArtifactError(f"{path} has {size} bytes, too many for a description", REMAKE)
    document = read_json(path, "a bundle's description")
    version = document.get("version")
    if document.get("format") != FORMAT or type(version) is not int:
        raise ArtifactError(f"{path} does not describe a bundle", REMAKE)
    if version > VERSION:
        raise ArtifactError(f"{path} has version {version}, newer than {VERSION}", "upgrade engram")
    return document


def _listing(path: Path) -> Listing | None:
    """The files that the description of a bundle lists, and its card as long as nobody edited it.

    Bundles of versions before this one do not say what their card was: its head must do.
    """
    try:
        document = read_description(path)
    except EngramError:
        return None
    listed, unlisted = document.get("files"), document.get("unlisted", {CARD: None})
    if not isinstance(listed, dict) or not all(map(_OWN_NAME.fullmatch, listed)):
        return None
    own = {CARD} & set(unlisted) if isinstance(unlisted, dict) else set()
    return Listing(
        frozenset(listed) | {DESCRIPTION},
        frozenset(name for name in own if _as_written(path / name, unlisted[name])),
    )


def _as_written(path: Path, digest: Any) -> bool:
    try:
        raw = path.read_bytes()
    except OSError:
        return False
    return raw.startswith(_CARD_HEAD) if digest is None else sha256_bytes(raw) == digest


BUNDLE = Kind(name="bundle", listing=_listing)


class ListedFiles:
    """The files that a description lists; each has a plain name and the size it should have."""

    def __init__(self, folder: Path, document: Mapping[str, Any]) -> None:
        self._folder = folder
        self._listed: dict[str, tuple[int, str]] = {}
        listed = document.get("files")
        for name, about in listed.items() if isinstance(listed, dict) else ():
            if not PLAIN_NAME.fullmatch(name):
                raise ArtifactError(f"{folder / DESCRIPTION} lists a file {name!r}", REMAKE)
            try:
                self._listed[name] = int(about["bytes"]), str(about["digest"])
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ArtifactError(
                    f"{folder / DESCRIPTION} gives {name} no size and digest", REMAKE
                ) from None
        for name in self._listed:
            self._check_size(name)

    def __contains__(self, name: str) -> bool:
        return name in self._listed

    @property
    def names(self) -> list[str]:
        """The files, by name."""
        return sorted(self._listed)

    def size(self, name: str) -> int:
        """The bytes that a file should have, and has."""
        return self._listed[name][0]

    def problem(self, name: str) -> str | None:
        """What is wrong with a file that is read whole; None where nothing is."""
        try:
            self.check_digest(name)
        except ArtifactError as error:
            return error.message
        return None

    def expect(self, names: set[str]) -> None:
        """Raises ArtifactError for a name that the description does not list."""
        for name in sorted(names - set(self._listed)):
            raise ArtifactError(f"{self._folder / DESCRIPTION} lists no file {name!r}", REMAKE)

    def read(self, name: str) -> bytes:
        """The bytes of a small file, its digest checked."""
        self.expect({name})
        if self._listed[name][0] > MAX_SMALL_BYTES:
            raise ArtifactError(f"{self._folder / name} is too large", REMAKE)
        with opened(self._folder / name) as file:
            raw = file.read()
        if sha256_bytes(raw) != self._listed[name][1]:
            raise self._changed(name)
        return raw

    def check_digest(self, name: str) -> None:
        """Read the whole file. Raises ArtifactError when it is not the one that was written."""
        with opened(self._folder / name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if f"sha256:{digest}" != self._listed[name][1]:
            raise self._changed(name)

    def _check_size(self, name: str) -> None:
        path, expected = self._folder / name, self._listed[name][0]
        if not path.is_file():
            raise ArtifactError(f"{path} is missing", REMAKE)
        if path.stat().st_size != expected:
            raise ArtifactError(f"{path}: {path.stat().st_size} bytes, not {expected}", REMAKE)

    def _changed(self, name: str) -> ArtifactError:
        return ArtifactError(
            f"{self._folder / name} was changed after it was written: digests differ", REMAKE
        )


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A file of a bundle, open for reading. Raises ArtifactError."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}", REMAKE) from None
