"""Writes the files of a DeepSeek-V4.1 release that hold its table, with the rows of another one.

Each file keeps its header, so that names, shapes and the index of the release stay as they are;
tensors that are no rows are copied. The folder that is written goes over the release.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, InputError, MismatchError
from engram_cli.files import read_json
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Target, WriteOptions, Written, require_agreement
from engram_cli.formats.row264 import DTYPE, require_e8m0, require_room
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY
from engram_cli.outputs import Kind, Listing, new_folder, prepare_output
from engram_cli.rows.copying import Extent, copy_bytes, differing_byte
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.safetensors import INDEX
from engram_cli.rows.source import ROWS, SCALES, RowSource, Span
from engram_cli.rows.stored_as import PIECE_BYTES, require_same_rows, stored_reader

_NAME, _FORMAT = "engram-patch.json", "engram-patch"
_HINT = "take the release again"


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file of the release: its `size`, and where its rows are, by (layer, part), ascending."""

    path: Path
    size: int
    rows: dict[tuple[int, str], Extent] = field(default_factory=dict)

    @property
    def others(self) -> tuple[Extent, ...]:
        """What is copied: header, and all between the rows."""
        edges = [Extent(begin=0, size=0, to=0), *self.rows.values()]
        edges.append(Extent(begin=self.size, size=0, to=self.size))
        gaps = ((a.begin + a.size, b.begin) for a, b in pairwise(edges))
        return tuple(Extent(begin=a, size=b - a, to=a) for a, b in gaps if b > a)


def write_patch(source: RowSource, out: Path, options: WriteOptions) -> Written:
    """Write the files of `options.patch` that hold rows, with those of `source`, and the index.

    Raises InputError without a release, MismatchError for rows of another geometry, OutputError,
    ArtifactError for a damaged release.
    """
    require_e8m0(source, "deepseek-v4.1")
    if options.patch is None:
        raise InputError(
            f"{source.path} has no wkv, q_weight and k_weight, which lie next to the rows",
            "name the release that the table is for: --patch CKPT",
        )
    release = _release(options.patch)
    _require_fit(source, release)
    files = _files(release)
    has_index = (release.path / INDEX).is_file()
    names = tuple(file.path.name for file in files) + ((INDEX,) if has_index else ())
    size = sum(file.size for file in files)
    if options.check:
        return Written(files=(*names, _NAME), size=size)
    prepare_output(out, PATCH, force=options.force, inputs=(source.path, release.path))
    require_room(out, size)
    options.progress.start("rows into the release's files", size, "bytes")
    with new_folder(out, PATCH, force=options.force) as folder:
        for file in files:
            _write_file(source, file, folder / file.path.name, options)
        if has_index:
            shutil.copyfile(release.path / INDEX, folder / INDEX)
        about = {
            "format": _FORMAT,
            "version": 1,
            "files": list(names),
            "layers": list(source.layers),
            "fingerprint": source.layout.fingerprint,
        }
        (folder / _NAME).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if options.verify:
            _verify(source, release, files, folder, options)
    return Written(
        files=(*names, _NAME),
        size=size,
        verified=options.verify,
        notes=(f"to use it, put the files of {out.name} over those of {release.path.name}",),
    )


def _release(path: Path) -> FileRows:
    """Open the release. Raises InputError for anything else, ArtifactError for a damaged one."""
    form = FORMATS.load("deepseek-v4.1")
    found = form.recognise(path)
    if found is None:
        raise InputError(f"{path} is no DeepSeek-V4.1 checkpoint", "give its folder with --patch")
    release = form.open(found)
    assert isinstance(release, FileRows)
    require_agreement(release, _HINT)
    if release.dtype != DTYPE or release.layers != release.layout.layer_ids:
        raise InputError(
            f"{path} has rows of {release.dtype} in layers {list(release.layers)}",
            "all files with rows are needed, for the projections next to them",
        )
    return release


def _require_fit(source: RowSource, release: FileRows) -> None:
    """Raise MismatchError unless the rows of the source are those that the release looks up."""
    ours, theirs = source.layout, release.layout
    differ = [
        f"{name} {a} instead of {b}"
        for name, a, b in (
            ("dim", source.dim, release.dim),
            ("layers", list(ours.layer_ids), list(theirs.layer_ids)),
            ("orders", list(ours.orders), list(theirs.orders)),
            ("heads", ours.heads, theirs.heads),
            ("compressed ids", ours.compressed_size, theirs.compressed_size),
            ("rows", [e.rows for e in ours.layers], [e.rows for e in theirs.layers]),
        )
        if a != b
    ]
    if not differ and ours.layers != theirs.layers:
        differ = ["other moduli or multipliers"]
    known = UNKNOWN_VOCABULARY not in (ours.vocab_digest, theirs.vocab_digest)
    if not differ and known and ours.fingerprint != theirs.fingerprint:
        differ = ["another token map or pad token"]
    if differ:
        raise MismatchError(
            f"{source.path} does not fit into {release.path}: {'; '.join(differ)}",
            "build the table with the release's geometry and tokenizer (--preset deepseek-v4.1)",
        )


def _files(release: FileRows) -> list[_File]:
    """Return the files with rows. Raises ArtifactError for tensors that overlap."""
    found: dict[Path, dict[tuple[int, str], Extent]] = {}
    for layer in release.layers:
        for part in (ROWS, SCALES):
            (span,) = release.spans(layer, part)
            array = release.parts[layer, part]
            size = array.rows * array.row_bytes
            own = found.setdefault(span.file, {})
            own[layer, part] = Extent(begin=span.begin, size=size, to=span.begin)
    files = []
    for path, extents in sorted(found.items()):
        ordered = dict(sorted(extents.items(), key=lambda each: each[1].begin))
        if any(a.begin + a.size > b.begin for a, b in pairwise(ordered.values())):
            raise ArtifactError(f"{path}: tensors overlap", _HINT)
        files.append(_File(path=path, size=path.stat().st_size, rows=ordered))
    return files


def _write_file(source: RowSource, file: _File, target: Path, options: WriteOptions) -> None:
    """Write one file: what is no rows from the release, the rows from the source."""
    with file.path.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        for extent in file.others:
            new.seek(extent.to)
            copy_bytes(old, new, extent.begin, extent.size, options.progress.advance)
        for (layer, part), extent in file.rows.items():
            new.seek(extent.to)
            for piece in _pieces(source, layer, part):
                view = np.ascontiguousarray(piece).reshape(-1).data
                options.progress.advance(len(view))
                while view:
                    view = view[new.write(view) :]


def _pieces(source: RowSource, layer: int, part: str) -> Iterator[NDArray[Any]]:
    """Yield the items or the scales of a layer in order."""
    rows, dim = source.layout.layer(layer).rows, source.dim or 1
    step = max(1, PIECE_BYTES // dim)
    read = stored_reader(source, DTYPE)
    assert read is not None
    for first in range(0, rows, step):
        count = min(step, rows - first)
        if source.dtype == DTYPE:
            yield source.lines(layer, part, first, count)
        else:  # items and scales lie in the same blocks
            yield read(layer, first, count)[0 if part == ROWS else 1]


def _verify(
    source: RowSource, release: FileRows, files: list[_File], folder: Path, options: WriteOptions
) -> None:
    """Raise ArtifactError unless rows equal the source's, and all else equals the release's."""
    parts = {}
    for file in files:
        new = folder / file.path.name
        at = differing_byte(file.path, new, file.others)
        if at is not None:
            raise ArtifactError(f"{new}: byte {at:,} is not what was copied", "check the disk")
        for (layer, part), extent in file.rows.items():
            array = release.parts[layer, part]
            span = Span(file=new, begin=extent.to, first=0, rows=array.rows)
            parts[layer, part] = FileArray([span], array.dtype, array.tail)
    written = FileRows(
        format="deepseek-v4.1",
        path=folder,
        layout=source.layout,
        layers=source.layers,
        dim=source.dim,
        dtype=DTYPE,
        parts=parts,
    )
    require_same_rows(source, written, DTYPE, progress=options.progress)


def _listing(path: Path) -> Listing | None:
    try:
        about = read_json(path / _NAME, "a patch")
    except EngramError:
        return None
    files = about.get("files")
    if about.get("format") != _FORMAT or not isinstance(files, list):
        return None
    if not all(isinstance(name, str) and Path(name).name == name for name in files):
        return None
    return Listing(frozenset((*files, _NAME)))


PATCH = Kind(name="patch of a checkpoint", listing=_listing)
TARGET = Target(write=write_patch, dtypes=(DTYPE,))
