"""The files of a bundle: their names, and the sizes and digests that `engram.json` gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from engram_cli.errors import ArtifactError
from engram_cli.files import sha256_bytes
from engram_cli.formats.bundle_description import PLAIN_NAME
from engram_cli.remote.path import look_at

DESCRIPTION, DENSE, CARD = "engram.json", "dense.safetensors", "README.md"
VOCABULARY = "vocabulary.safetensors"
MAX_SMALL_BYTES = 8 * 2**30  # dense weights and the vocabulary, which are read into memory
REMAKE = "write the bundle again with engram attach --force"


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
        look_at(folder / name for name in self._listed)
        for name in self._listed:
            self._check_size(name)

    def __contains__(self, name: str) -> bool:
        return name in self._listed

    @property
    def names(self) -> list[str]:
        """The files, by name."""
        return sorted(self._listed)

    def size(self, name: str) -> int:
        """Return the bytes that a file should have, and has."""
        return self._listed[name][0]

    def problem(self, name: str) -> str | None:
        """Return what is wrong with a file that is read whole; None where nothing is."""
        try:
            self.check_digest(name)
        except ArtifactError as error:
            return error.message
        return None

    def expect(self, names: set[str]) -> None:
        """Raise ArtifactError for a name that the description does not list."""
        for name in sorted(names - set(self._listed)):
            raise ArtifactError(f"{self._folder / DESCRIPTION} lists no file {name!r}", REMAKE)

    def read(self, name: str) -> bytes:
        """Return the bytes of a small file, its digest checked."""
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
    """Open a file of a bundle for reading. Raises ArtifactError."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}", REMAKE) from None
