"""A table or bundle whose rows are replaced in its files: which bytes they are, and its metadata.

The metadata of a table is its zarr.json, that of a bundle its engram.json. Both list a digest of
each file, and both are written again when rows were replaced. While rows are replaced, they say so,
and readers refuse the artifact.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.files import canonical_json, inner_file, output_errors, read_json, sha256_bytes
from engram_cli.formats.base import PATCHES
from engram_cli.formats.bundle import BUNDLE, PATCHING, read_bundle
from engram_cli.formats.bundle_description import FORMAT as BUNDLE_FORMAT
from engram_cli.formats.bundle_files import DESCRIPTION
from engram_cli.formats.bundle_rows import bundle_rows
from engram_cli.outputs import Kind
from engram_cli.patches.patch import LayerPatch
from engram_cli.patches.replaced import as_bytes
from engram_cli.progress import SILENT, Progress
from engram_cli.rows.checksum import file_checksum
from engram_cli.rows.source import ROWS, SCALES, RowSource, Span
from engram_cli.table.attributes import META
from engram_cli.table.attributes import PATCHING as TABLE_PATCHING
from engram_cli.table.grid import content_digest
from engram_cli.table.places import TABLE
from engram_cli.table.store import open_table, zarr_metadata

_RUN_BYTES = 2**22
Layers = Mapping[int, LayerPatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An opened table or bundle. `document`: its metadata; `patching`: what it says of a patch
    that is being applied or undone, None where there is none.
    """

    source: RowSource
    kind: Kind
    document: Mapping[str, Any]
    patching: Mapping[str, Any] | None = None

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.source.path

    @property
    def is_table(self) -> bool:
        """Whether it is a table, else a bundle."""
        return self.kind is TABLE

    @property
    def digest(self) -> str:
        """The digest that names the artifact by its metadata."""
        digest = self.source.digest
        assert digest is not None
        return digest

    @property
    def meta(self) -> Path:
        """The file of its metadata."""
        return self.path / (META if self.is_table else DESCRIPTION)

    @property
    def patches(self) -> list[dict[str, Any]]:
        """The patches that its rows have, as its metadata lists them, the oldest first."""
        place = self.document["attributes"] if self.is_table else self.document
        listed = place.get(PATCHES, [])
        sound = isinstance(listed, list) and all(isinstance(each, dict) for each in listed)
        return [dict(each) for each in listed] if sound else []

    def in_folder(self, folder: Path) -> Target:
        """Return the same artifact as a copy of its files in another folder, opened."""
        return _open(folder, self.is_table, patching=False)

    def mark(self, about: Mapping[str, Any]) -> None:
        """Write metadata that says that rows are being replaced, and by what."""
        document: dict[str, Any] = deepcopy(dict(self.document))
        if self.is_table:
            document["attributes"] |= {"complete": False, TABLE_PATCHING: dict(about)}
        else:
            document |= {"format": PATCHING, TABLE_PATCHING: dict(about)}
        self._write(self._encoded(document))

    def sealed(
        self, digests: Mapping[str, str], patches: Sequence[Mapping[str, Any]]
    ) -> tuple[bytes, str]:
        """Return the metadata with other digests of some files and other patches, and its digest.

        Whatever it says of a patch that is being applied is left out.
        """
        document: dict[str, Any] = deepcopy(dict(self.document))
        place = document["attributes"] if self.is_table else document
        place.pop(TABLE_PATCHING, None)
        place.pop(PATCHES, None)
        if patches:
            place[PATCHES] = [dict(each) for each in patches]
        if not self.is_table:
            document["format"] = BUNDLE_FORMAT
            for name, digest in digests.items():
                document["files"][name]["digest"] = digest
            raw = canonical_json(document)
            return raw, sha256_bytes(raw)
        for name, digest in digests.items():
            place["manifest"]["files"][name][1] = digest
        place |= {"complete": True, "digest": content_digest(place)}
        return self._encoded(document), str(place["digest"])

    def seal(self, raw: bytes) -> None:
        """Write final metadata."""
        self._write(raw)

    def _encoded(self, document: Mapping[str, Any]) -> bytes:
        if self.is_table:
            return zarr_metadata([], document["attributes"])[META]
        return canonical_json(document)

    def _write(self, raw: bytes) -> None:
        with inner_file(self.meta) as part:
            part.write_bytes(raw)

    def files(self, layers: Layers) -> list[str]:
        """Return the files that hold these rows or their scales, by name."""
        found = {
            span.file.relative_to(self.path).as_posix()
            for layer, own in layers.items()
            for part, _ in _parts(own)
            for span in self.source.spans(layer, part)
            if len(_within(span, own.ids))
        }
        return sorted(found)

    def digests(
        self, names: Sequence[str], threads: int, progress: Progress = SILENT
    ) -> dict[str, str]:
        """Read files whole; return their digests as the metadata lists them. Raises OutputError."""
        progress.start("digests", sum((self.path / n).stat().st_size for n in names), "bytes")

        def digest(name: str) -> str:
            path = self.path / name
            if self.is_table:
                found = file_checksum(path)
            else:
                with path.open("rb") as file:
                    found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            progress.advance(path.stat().st_size)
            return found

        with output_errors(self.path), ThreadPoolExecutor(threads) as pool:
            return dict(zip(names, pool.map(digest, names), strict=True))

    def require_whole(self, names: Sequence[str], threads: int, progress: Progress) -> None:
        """Raise ArtifactError for a file that has another digest than the metadata says.

        Digests are computed again when rows were replaced, which would vouch for the damage.
        """
        place = self.document["attributes"]["manifest"] if self.is_table else self.document
        for name, found in self.digests(names, threads, progress).items():
            listed = place["files"][name]
            if found != (listed[1] if self.is_table else listed["digest"]):
                raise ArtifactError(
                    f"{self.path / name} was changed or damaged: its digest differs",
                    "see engram verify, and take the artifact again",
                )

    def require_writable(self, names: Sequence[str]) -> None:
        """Raise OutputError for files that are links, or that have other names too."""
        with output_errors(self.path):
            for name in [*names, self.meta.name]:
                about = os.lstat(self.path / name)
                if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
                    raise OutputError(
                        f"{self.path / name} is a link, or has other names: what they stand for "
                        "would change too",
                        "write a patched copy with --out",
                    )

    def write(self, layers: Layers, progress: Progress = SILENT) -> None:
        """Write rows and their scales to the files, and flush these. Raises OutputError."""
        progress.start("write", sum(map(len, layers.values())), "rows")
        with output_errors(self.path):
            for layer, own in layers.items():
                for part, new in _parts(own):
                    for span in self.source.spans(layer, part):
                        within = _within(span, own.ids)
                        if len(within):
                            _write_rows(span, own.ids[within], new[within])
                progress.advance(len(own))


def open_target(path: Path) -> Target:
    """Open the table or bundle at `path`, also one that is half-patched.

    Raises InputError for anything else, and for a bundle whose rows are those of other files.
    """
    for folder in (path, path / "engram"):
        if (folder / DESCRIPTION).is_file():
            return _open(folder, table=False, patching=True)
    if (path / META).is_file():
        return _open(path, table=True, patching=True)
    if not path.exists():
        raise InputError(f"{path} does not exist", "give a table or a bundle")
    raise InputError(
        f"{path} is no table or bundle of engram, which alone can be patched",
        "make a table of it: engram convert; or stack patches on it: attach(model, path, patches=)",
    )


def _open(folder: Path, table: bool, *, patching: bool) -> Target:
    if table:
        source: RowSource = open_table(folder, patching=patching)
        document = read_json(folder / META, "a table")
        about = document["attributes"].get(TABLE_PATCHING)
    else:
        bundle = read_bundle(folder, patching=patching)
        if bundle.reference is not None:
            held = bundle.table or bundle.reference.path
            raise InputError(
                f"the bundle {folder} has no rows of its own: they are those of {held}",
                "patch these, then attach again; or stack patches: attach(model, path, patches=)",
            )
        source = bundle_rows(bundle)
        document = read_json(folder / DESCRIPTION, "a bundle")
        about = document.get(TABLE_PATCHING)
    target = Target(source=source, kind=TABLE if table else BUNDLE, document=document)
    return replace(target, patching=about) if isinstance(about, dict) else target


def _parts(own: LayerPatch) -> list[tuple[str, NDArray[Any]]]:
    return list(zip((ROWS, SCALES), own.parts(), strict=False))


def _within(span: Span, ids: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the places of the ascending `ids` that a span holds."""
    begin, stop = np.searchsorted(ids, [span.first, span.first + span.rows])
    return np.arange(begin, stop)


def _write_rows(span: Span, ids: NDArray[np.int64], new: NDArray[Any]) -> None:
    """Write rows of a span; rows next to each other at once. Raises OSError."""
    raw = as_bytes(new)
    width = raw.shape[1]
    step = span.stride or width
    longest = max(1, _RUN_BYTES // width) if step == width else 1
    cut = np.flatnonzero(np.diff(ids) != 1) + 1
    handle = os.open(span.file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for run in np.split(np.arange(len(ids)), cut):
            for first in range(0, len(run), longest):
                own = run[first : first + longest]
                begin = span.begin + int(ids[own[0]] - span.first) * step
                piece = raw[own[0] : own[-1] + 1].reshape(-1).data
                while piece:
                    count = os.pwrite(handle, piece, begin)
                    piece, begin = piece[count:], begin + count
        os.fsync(handle)
    finally:
        os.close(handle)
