"""A bundle that refers to a table: the chunk files it maps, and whether they are still the same.

In: what `engram.json` records of the table. Out: its folder, and the shards that its chunk files
are. Chunk files are raw rows, so that neither zarr nor a codec is needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engram_cli.errors import ArtifactError, EngramError, InputError, MismatchError
from engram_cli.files import read_json
from engram_cli.formats.bundle_spec import HITS, BundleSpec, Shard
from engram_cli.formats.file_stamp import FileStamp
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.table.grid import ChunkedArray, array_name, content_digest

META = "zarr.json"
MAX_META_BYTES = 256 * 2**20
_AGAIN = "write the bundle again with engram attach --reference --force"
_VERIFY = "see what else is wrong with the table: engram verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReference:
    """A table by its `path` (relative to the bundle, or absolute) and the digest of its content.

    `files`: size in bytes and checksum of each chunk file that the bundle's layers need, by its
    path in the table, as the table's manifest has them; hits among them where the table has some.
    `stamps`: what each of them was when the bundle was made; {} in bundles of versions before.
    """

    path: str
    digest: str
    files: Mapping[str, tuple[int, str]]
    stamps: Mapping[str, FileStamp] = field(default_factory=dict)

    def folder(self, bundle: Path) -> Path:
        """Return where the table lies."""
        return Path(os.path.normpath(bundle.resolve() / self.path))

    def shards(self, spec: BundleSpec) -> tuple[Shard, ...]:
        """Return the chunk files as shards, in the order of layers, parts and rows.

        Names and numbers of chunks follow from the spec and the chunks' size. Raises ValueError
        where the files are others.
        """
        parts = (*spec.parts, HITS) if any(map(_is_hits, self.files)) else spec.parts
        found = [
            shard
            for layer in spec.layers
            for part in parts
            for shard in self._chunks(spec, layer, part)
        ]
        if {shard.file for shard in found} != set(self.files):
            raise ValueError("the table's files are not those of its layers")
        return tuple(found)

    def _chunks(self, spec: BundleSpec, layer: int, part: str) -> list[Shard]:
        whole = spec.tensor(layer, part)
        array = ChunkedArray(
            name=array_name(layer, part),
            rows=whole.shape[0],
            width=whole.shape[1] if len(whole.shape) > 1 else None,
            dtype=physical_dtype(whole.dtype),
            chunk_rows=1,
        )
        rows, width, size = array.rows, array.row_bytes, self.files[array.file(0)][0]
        step = size // width
        if size % width or not 0 < step <= rows or -(-rows // step) > len(self.files):
            raise ValueError(f"chunks of {size} bytes for {rows} lines of {width}")
        array = replace(array, chunk_rows=step)
        if {self.files[name][0] for name in array.files} != {size}:
            raise ValueError(f"chunks of different sizes in layer {layer}")
        spans = [(file, *array.span(index)) for index, file in enumerate(array.files)]
        return [
            Shard(layer=layer, part=part, file=file, first_row=first, rows=count)
            for file, first, count in spans
        ]

    def check(self, bundle: Path, spec: BundleSpec) -> Path:
        """Return the table's folder. Raises InputError if it is missing, MismatchError for another.

        Checked are the attributes and their digest, dtype, row length and layout, the manifest's
        sizes and checksums, and the size of each chunk file, its time of change and its first 64
        KiB. No other row is read.
        """
        folder = self.folder(bundle)
        attributes = self._attributes(folder, bundle)
        for what, mine, found in (
            ("digest", self.digest, content_digest(attributes)),
            ("dtype", spec.dtype, attributes.get("dtype")),
            ("row length", spec.dim, attributes.get("dim")),
            ("layout", spec.layout.fingerprint, attributes.get("fingerprint")),
        ):
            if mine != found:
                raise MismatchError(
                    f"the table {folder} is not the one that the bundle {bundle} refers to: "
                    f"its {what} is {found}, not {mine}",
                    f"put the old table back, or {_AGAIN}",
                )
        listed = attributes["manifest"]["files"]
        for name, (size, checksum) in self.files.items():
            if listed.get(name) != [size, checksum]:
                raise MismatchError(f"{bundle} and the manifest of {folder} disagree on {name}",
                                    _AGAIN)  # fmt: skip
            _check_size(folder / name, size)
        for name, stamp in self.stamps.items():
            _check_stamp(folder, name, stamp, bundle)
        return folder

    def _attributes(self, folder: Path, bundle: Path) -> dict[str, Any]:
        path = folder / META
        if not path.is_file():
            raise InputError(
                f"the bundle {bundle} refers to the table {folder}, which is not there",
                f"put the table back, or {_AGAIN}",
            )
        try:
            if path.stat().st_size > MAX_META_BYTES:
                raise ArtifactError(f"{path} is too large for a table's attributes", _AGAIN)
            attributes = read_json(path, "the attributes of a table")["attributes"]
            if attributes["complete"] is not True or not isinstance(
                attributes["manifest"]["files"], dict
            ):
                raise ValueError("it is not complete")
        except EngramError:
            raise
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f"{folder} is no finished table: {error!r}", _AGAIN) from None
        assert isinstance(attributes, dict)
        return attributes

    def to_json(self) -> dict[str, Any]:
        """Return the object `table` of engram.json."""
        files: dict[str, Any] = {"files": {}, HITS: {}}
        for name, entry in sorted(self.files.items()):
            files[HITS if _is_hits(name) else "files"][name] = list(entry)
        # Apart from the others, so that readers that know no hits take the rest.
        stamps = {name: stamp.to_json() for name, stamp in sorted(self.stamps.items())}
        return {
            "path": self.path,
            "digest": self.digest,
            **{key: own for key, own in files.items() if own or key != HITS},
            **({"stamps": stamps} if stamps else {}),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TableReference:
        """Read the object `table` of engram.json. Raises ValueError and its kin."""
        path, digest, hits = document["path"], document["digest"], document.get(HITS, {})
        if not all(map(_is_hits, hits)) or any(map(_is_hits, document["files"])):
            raise ValueError("the table's hits are files of something else")
        listed = {**document["files"], **hits}
        if any(not isinstance(entry, list) or len(entry) != 2 for entry in listed.values()):
            raise ValueError("the table has a file without size and checksum")
        texts = [path, digest, *(entry[1] for entry in listed.values())]
        sizes = [entry[0] for entry in listed.values()]
        if not all(isinstance(text, str) for text in texts) or not path or "\0" in path:
            raise ValueError("the table has a path, digest or checksum that is no text")
        if any(type(size) is not int or size < 1 for size in sizes):
            raise ValueError("the table has a file of no size")
        stamps = {
            name: FileStamp.from_json(name, about)
            for name, about in document.get("stamps", {}).items()
        }
        if stamps and {name: stamp.size for name, stamp in stamps.items()} != {
            name: entry[0] for name, entry in listed.items()
        }:
            raise ValueError("the stamps are not those of the table's files")
        return cls(
            path=path,
            digest=digest,
            files={name: (entry[0], entry[1]) for name, entry in listed.items()},
            stamps=stamps,
        )


def refer(
    table: Path, digest: str, files: Mapping[str, tuple[int, str]], spec: BundleSpec, bundle: Path
) -> TableReference:
    """Return the reference of a bundle that will lie at `bundle`.

    `files` is the table's manifest, of which the bundle's layers are taken. The path is relative
    where the table lies next to the checkpoint or the bundle, so that both can move; else absolute.
    Raises InputError for files that cannot be read, ArtifactError for those of another size.
    """
    own = {array_name(layer, part) for layer in spec.layers for part in (*spec.parts, HITS)}
    listed = {name: entry for name, entry in files.items() if name.rpartition("/")[0] in own}
    try:
        stamps = {name: FileStamp.of(table / name) for name in listed}
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}", _VERIFY) from None
    for name, (size, _) in listed.items():
        if stamps[name].size != size:
            raise ArtifactError(
                f"{table / name} has {stamps[name].size:,} bytes, not {size:,}", _VERIFY
            )
    return TableReference(
        path=_path_from(table.resolve(), bundle.resolve()),
        digest=digest,
        files=listed,
        stamps=stamps,
    )


def _is_hits(file: str) -> bool:
    return file.startswith(f"{HITS}/")


def _path_from(table: Path, bundle: Path) -> str:
    if bundle.parent.parent in table.parents and bundle.parent.parent != Path(bundle.anchor):
        return Path(os.path.relpath(table, bundle)).as_posix()
    return str(table)


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", _AGAIN) from None
    if found != size or not path.is_file():
        raise ArtifactError(f"{path} has {found} bytes, not {size}", _AGAIN)


def _check_stamp(folder: Path, name: str, stamp: FileStamp, bundle: Path) -> None:
    try:
        found = FileStamp.of(folder / name)
    except OSError as error:
        raise ArtifactError(f"{folder / name} cannot be read: {error.strerror}", _AGAIN) from None
    if found != stamp:
        raise MismatchError(
            f"{folder / name} was changed since the bundle {bundle} was made: "
            f"{stamp.difference(found)}",
            f"see whether the table is whole: engram verify {folder}; then attach it again: "
            "engram attach --reference --force",
        )
