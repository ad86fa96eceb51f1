"""Writes the files of a DeepSeek-V4.1 release that hold its table, with the rows of another one.

Each file keeps its header, so that names, shapes and the index of the release stay as they are;
tensors that are no rows are copied. The folder that is written goes over the release.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.formats import FORMATS
from engram_cli.formats.base import WriteOptions, Written, require_agreement
from engram_cli.formats.model_writer import CONVERTED, MARKER, put_checkpoint
from engram_cli.formats.row264 import DTYPE, require_e8m0
from engram_cli.formats.row_files import grown_files, prepare_rows
from engram_cli.formats.row_plan import NewFile, Place, RowFiles
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY
from engram_cli.rows.copying import Extent, differing_byte
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.safetensors import INDEX
from engram_cli.rows.source import ROWS, SCALES, RowSource, Span
from engram_cli.rows.stored_as import require_same_rows

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


def write_patch(source: RowSource, out: Path, patch: Path, options: WriteOptions) -> Written:
    """Write the files of the release `patch` that hold rows, with those of `source`, and the index.

    Raises InputError for no release, MismatchError for rows of another geometry, OutputError,
    ArtifactError for a damaged release.
    """
    require_e8m0(source, "a patch of deepseek-v4.1")
    release = _release(patch)
    _require_fit(source, release)
    files = _files(release)
    has_index = (release.path / INDEX).is_file()
    names = tuple(file.path.name for file in files) + ((INDEX,) if has_index else ())
    plan = RowFiles(
        source=source,
        dtype=DTYPE,
        files=tuple(
            NewFile(
                name=file.path.name,
                size=file.size,
                copies=tuple((file.path, extent) for extent in file.others),
            )
            for file in files
        ),
        places=tuple(
            Place(
                file=file.path.name,
                layer=layer,
                part=part,
                begin=extent.to,
                first=0,
                rows=release.parts[layer, part].rows,
                width=release.parts[layer, part].row_bytes,
            )
            for file in files
            for (layer, part), extent in file.rows.items()
        ),
        small=((INDEX,) if has_index else ()) + (MARKER,),
    )
    done = Written(files=(*names, MARKER), size=plan.size)
    if options.check:
        return done
    prepare_rows(out, CONVERTED, options, (source.path, release.path))
    with grown_files(out, plan, options) as grown:
        if has_index:
            shutil.copyfile(release.path / INDEX, grown.folder / INDEX)
        if options.verify:
            _verify(source, release, files, grown.folder, options)
        put_checkpoint(grown, out, done, source, options)
    return replace(
        done,
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
    require_same_rows(source, written, DTYPE, threads=options.threads, progress=options.progress)
