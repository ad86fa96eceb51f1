"""Reads the attributes of a table, which are untrusted: every field is checked before it is used.

In: the zarr.json of the group and of each array. Out: a Description, whose arrays, chunk files and
checksums agree with one another. Nothing here opens a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from engram_cli.errors import ArtifactError, IncompleteError, InputError
from engram_cli.files import read_json
from engram_cli.hashing.layout import HashLayout
from engram_cli.rows import DTYPES
from engram_cli.rows.checksum import ALGORITHM
from engram_cli.rows.dtypes import Scaling
from engram_cli.rows.source import HITS, SCALES
from engram_cli.table.grid import (
    HITS_TYPE,
    LOOKUP,
    LOOKUP_TYPE,
    PROJECTION_TYPE,
    ChunkedArray,
    array_name,
    content_digest,
    half_patched_hint,
    projection_array,
)
from engram_cli.table.spec import FORMAT, MAX_CHUNKS, MAX_DIM, SHARDED

META = "zarr.json"
PARTIAL_SUFFIX = ".partial"
SHARDING = "sharding_indexed"
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_REMAKE = "build the table again, or take it again from where it came"
UPDATE_AGAIN = "run the same engram update again: it completes the update"
PATCHING = "patching"  # an attribute of a table whose rows are being patched
_GO_ON = "run the command again that began it, build-table or convert: it resumes from there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A table by its attributes: `files` maps every path in the store to (size, checksum)."""

    path: Path
    layout: HashLayout
    dim: int
    dtype: str
    attributes: Mapping[str, Any]
    arrays: Mapping[str, ChunkedArray]
    files: Mapping[str, tuple[int, str]]


def read_description(path: Path, *, patching: bool = False) -> Description:
    """Read and check the attributes of the table at `path`; its layout has no lookup bound yet.

    `patching`: also of one that is half-patched. Raises InputError when there is none,
    IncompleteError for a half-built or half-patched one, ArtifactError for one that is damaged or
    newer.
    """
    attributes = _group_attributes(path)
    if PATCHING in attributes and not patching:
        raise IncompleteError(f"{path} is half-patched", half_patched_hint(path))
    if _is_updating(attributes):
        raise IncompleteError(f"{path} is half-updated", UPDATE_AGAIN)
    if attributes.get("complete") is not True and PATCHING not in attributes:
        raise IncompleteError(f"{path} is half-built", _GO_ON)
    return describe(path, attributes)


def describe(path: Path, attributes: Mapping[str, Any]) -> Description:
    """Return the table at `path` as these attributes have it. Raises ArtifactError."""
    try:
        layout = HashLayout.from_json(attributes["layout"])
        _need(layout.fingerprint == attributes["fingerprint"], "layout and fingerprint disagree")
        dim, dtype = attributes["dim"], attributes["dtype"]
        _need(_is_count(dim) and 1 <= dim <= MAX_DIM, f"dim is {dim!r}")
        _need(isinstance(dtype, str) and dtype in DTYPES, f"dtype is {dtype!r}")
        _need(isinstance(attributes["init"]["name"], str), "init has no name")
        _need(attributes["digest"] == content_digest(attributes), "attributes and digest disagree")
        arrays = _read_arrays(path, attributes, layout)
        files = _manifest(attributes["manifest"])
        # The counts first: a tampered one must not make a list of 2^50 names.
        chunks = sum(array.chunks for array in arrays.values())
        _need(chunks == len(files), f"the manifest has {len(files)} files for {chunks} chunks")
        for array in arrays.values():
            sizes = {files[name][0] for name in array.files if name in files}
            _need(sizes == {array.file_bytes}, f"chunks of '{array.name}' have sizes {sizes}")
        expected = {name for array in arrays.values() for name in array.files}
        _need(expected == set(files), "the manifest lists other files than the arrays have")
    except (_Wrong, ArtifactError) as error:
        raise ArtifactError(f"{path} is damaged: {error}", _REMAKE) from None
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            f"{path} is damaged: in the attributes of {META}, {_plain(error)}", _REMAKE
        ) from None
    return Description(
        path=path,
        layout=layout,
        dim=dim,
        dtype=dtype,
        attributes=attributes,
        arrays=arrays,
        files=files,
    )


def is_table(path: Path) -> bool:
    """Return whether the folder says of itself that it is a table, finished or not."""
    try:
        attributes = read_json(path / META, "a table").get("attributes")
    except (InputError, ArtifactError):
        return False
    return isinstance(attributes, dict) and attributes.get("format") == FORMAT


def half_built(path: Path) -> bool:
    """Return whether only the beginning of a table that was to stand at `path` is there."""
    return not path.exists() and path.with_name(path.name + PARTIAL_SUFFIX).is_dir()


def half_updated(path: Path) -> bool:
    """Return whether an update of the table at `path` has begun and is not completed."""
    try:
        attributes = read_json(path / META, "the attributes of a table").get("attributes")
    except InputError:
        return False
    return isinstance(attributes, dict) and _is_updating(attributes)


def _is_updating(attributes: Mapping[str, Any]) -> bool:
    return attributes.get("updating") is True and attributes.get("complete") is False


def before_update(path: Path) -> Description:
    """Return the half-updated table at `path` as it was before.

    Raises InputError, ArtifactError.
    """
    attributes = _group_attributes(path)
    before = {name: value for name, value in attributes.items() if name != "updating"}
    return describe(path, before | {"complete": True})


def group_problem(folder: Path, *, root: bool = False) -> str | None:
    """Return what is wrong with the metadata of a Zarr group; only the `root` has attributes."""
    file = folder / META
    try:
        meta = read_json(file, "the metadata of a group")
    except (InputError, ArtifactError) as error:
        return error.message
    wanted: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}
    wanted |= {} if root else {"attributes": {}}
    for key, value in wanted.items():
        if key not in meta:
            return f"{file} is damaged: there is no '{key}'"
        if meta[key] != value:
            return f"{file} is damaged: {key} is {meta[key]!r}, not {value!r}"
    return None


def _plain(error: Exception) -> str:
    """Return what is wrong with a document that could not be read as it should, in words."""
    return f"there is no {error}" if isinstance(error, KeyError) else f"a value is wrong: {error}"


class _Wrong(Exception):
    """A check that failed."""


def _need(true: bool, message: str) -> None:
    if not true:
        raise _Wrong(message)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _group_attributes(path: Path) -> dict[str, Any]:
    if not path.exists():
        if path.with_name(path.name + PARTIAL_SUFFIX).exists():
            raise IncompleteError(f"{path} is half-built", _GO_ON)
        raise InputError(f"no table at {path}", "run: engram build-table")
    if not (path / META).is_file():
        if path.name.endswith(PARTIAL_SUFFIX):
            raise IncompleteError(f"{path} is half-built", _GO_ON)
        raise ArtifactError(f"{path} is no table: it has no {META}", "give a table's folder")
    attributes = read_json(path / META, "the attributes of a table").get("attributes")
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise ArtifactError(f"{path} is a Zarr group, but no Engram table", "give a table's folder")
    version = attributes.get("version")
    if not _is_count(version) or version == 0:
        raise ArtifactError(f"{path} is damaged: its version is {version!r}", _REMAKE)
    if version > SHARDED:
        raise ArtifactError(f"{path} has version {version}, newer than {SHARDED}", "upgrade engram")
    return attributes


def _read_arrays(
    path: Path, attributes: Mapping[str, Any], layout: HashLayout
) -> dict[str, ChunkedArray]:
    row_type = DTYPES.load(attributes["dtype"])
    width = row_type.width(attributes["dim"])
    statistics = attributes["statistics"]
    _need(statistics is None or _is_count(statistics["tokens"]), f"statistics are {statistics!r}")
    arrays: dict[str, ChunkedArray] = {}
    for entry in layout.layers:
        rows = array_name(entry.layer)
        arrays[rows] = _read_array(path, rows, entry.rows, width, row_type.physical)
        if row_type.scaling is not None:
            name = array_name(entry.layer, SCALES)
            arrays[name] = _read_scales(
                path, name, row_type.scaling, attributes["dim"], arrays[rows]
            )
        if statistics is not None:
            hits = array_name(entry.layer, HITS)
            arrays[hits] = _read_array(path, hits, entry.rows, None, HITS_TYPE)
    hidden = _projected(attributes["init"])
    if hidden is not None:
        for entry in layout.layers:
            name, dim = projection_array(entry.layer), attributes["dim"]
            rows_of_all = layout.columns * hidden
            arrays[name] = _read_array(path, name, rows_of_all, dim, PROJECTION_TYPE)
    if layout.vocab_digest is not None:
        arrays[LOOKUP] = _read_array(path, LOOKUP, None, None, LOOKUP_TYPE)
    return arrays


def _read_scales(
    path: Path, name: str, scaling: Scaling, dim: int, rows: ChunkedArray
) -> ChunkedArray:
    if scaling.per == "layer":
        return _read_array(path, name, 1, None, scaling.dtype)
    scales = _read_array(path, name, rows.rows, scaling.width(dim), scaling.dtype)
    _need(scales.chunk_rows == rows.chunk_rows, f"'{name}' has chunks of {scales.chunk_rows} rows")
    _need(scales.inner_rows == rows.inner_rows, f"'{name}' has other inner chunks than the rows")
    return scales


def _projected(init: dict[str, Any]) -> int | None:
    """Return the hidden size of the embeddings that were projected to rows, if any were."""
    embeddings = init["parameters"].get("embeddings")
    if embeddings is None or embeddings["kind"] != "matrix":
        return None
    hidden = embeddings["hidden"]
    _need(_is_count(hidden) and 0 < hidden <= MAX_DIM, f"hidden is {hidden!r}")
    return int(hidden)


def _read_array(
    path: Path, name: str, rows: int | None, width: int | None, dtype: Any
) -> ChunkedArray:
    try:
        return _sound_array(path, name, rows, width, dtype)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise _Wrong(f"in {name}/{META}, {_plain(error)}") from None


def _sound_array(
    path: Path, name: str, rows: int | None, width: int | None, dtype: Any
) -> ChunkedArray:
    file = path / name / META
    _need(file.is_file(), f"{name}/{META} is missing")
    meta = read_json(file, "the metadata of an array")
    shape: Any = meta["shape"]
    chunk: Any = meta["chunk_grid"]["configuration"]["chunk_shape"]
    for lengths in (shape, chunk):
        _need(
            isinstance(lengths, list) and all(_is_count(n) and 0 < n < 2**48 for n in lengths),
            f"'{name}' has shape {shape!r} in chunks {chunk!r}",
        )
        _need(lengths[1:] == ([] if width is None else [width]), f"'{name}' has shape {shape}")
    height, chunk_rows = int(shape[0]), int(chunk[0])
    _need(rows is None or height == rows, f"'{name}' has {height} rows")
    plain = {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": dtype.name,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
    }
    for key, value in plain.items():
        _need(meta[key] == value, f"'{name}' has {key} {meta[key]!r}")
    _need(meta["chunk_grid"]["name"] == "regular", f"'{name}' has no regular chunks")
    codecs, inner = meta["codecs"], None
    if isinstance(codecs, list) and len(codecs) == 1 and codecs[0]["name"] == SHARDING:
        inner, codecs = _inner_rows(name, codecs[0]["configuration"], chunk)
    plain_codecs = len(codecs) == 1 and codecs[0] in _orders(dtype)
    _need(plain_codecs, f"'{name}' has codecs {codecs!r}")
    _need(chunk_rows < height + (inner or 1), f"'{name}' has chunks of {chunk_rows} rows")
    return ChunkedArray(
        name=name, rows=height, width=width, dtype=dtype, chunk_rows=chunk_rows, inner_rows=inner
    )


def _orders(dtype: Any) -> list[dict[str, Any]]:
    """Return how little-endian items may be described: one byte has no order, and may have none."""
    little = [{"name": "bytes", "configuration": {"endian": "little"}}]
    return [*little, {"name": "bytes"}] if dtype.itemsize == 1 else little


def _inner_rows(name: str, sharding: dict[str, Any], chunk: list[int]) -> tuple[int, Any]:
    """Return the rows of the inner chunks of a shard `chunk`, and the codecs of their items."""
    inner = sharding["chunk_shape"]
    whole = isinstance(inner, list) and all(map(_is_count, inner)) and inner[1:] == chunk[1:]
    _need(whole and 0 < inner[0] <= chunk[0], f"'{name}' has inner chunks {inner!r}")
    count, rest = divmod(chunk[0], inner[0])
    _need(rest == 0 and count <= MAX_CHUNKS, f"'{name}' has inner chunks {inner!r} in {chunk!r}")
    index = sharding["index_codecs"], sharding.get("index_location", "end")
    _need(index == (_INDEX_CODECS, "end"), f"'{name}' has an index {index!r}")
    return int(inner[0]), sharding["codecs"]


def _manifest(manifest: dict[str, Any]) -> dict[str, tuple[int, str]]:
    _need(manifest["algorithm"] == ALGORITHM, f"checksums by {manifest['algorithm']!r}")
    files = {}
    for name, entry in manifest["files"].items():
        _need(
            isinstance(entry, list)
            and len(entry) == 2
            and _is_count(entry[0])
            and isinstance(entry[1], str),
            f"the manifest says {entry!r} of {name!r}",
        )
        files[name] = (entry[0], entry[1])
    return files
