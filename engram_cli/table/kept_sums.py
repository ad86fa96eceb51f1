"""The sums that a table keeps: their files, what describes them, and how both are checked.

They are a Zarr group `sums` in the table: `sums/N` int64 [rows, 1 + dim] holds of each row of layer
N how many vectors were added to it and their sum, `sums/documents` uint64 [documents] the hash of
each document, ascending. The attributes of the group say the rest. Neither is part of the table's
digest: a table with sums has the digest of one without.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import PART, read_json
from engram_cli.table.grid import DOCUMENTS, SUMS, ChunkedArray

SLOTS = 16  # threads of an update at most
WORK_FILES = ("update.json", "done", *(f"slot-{number}" for number in range(SLOTS)))
META = "zarr.json"
FORMAT, VERSION = "engram-sums", 1
RECORD: np.dtype[Any] = np.dtype("<i8")
HASH: np.dtype[Any] = np.dtype("<u8")
_REFILL = "give the whole corpus with --corpus: the table is filled again, sums included"
_LARGEST = 2**15  # of a value of a vector
_MOST = 2**62


def sums_name(layer: int) -> str:
    """Return the name of the array of a layer's counts and sums."""
    return f"{SUMS}/{layer}"


def sums_array(layer: int, rows: int, dim: int) -> ChunkedArray:
    """Return the array of a layer's counts and sums, one chunk: updates write to it in place."""
    return ChunkedArray(
        name=sums_name(layer), rows=rows, width=1 + dim, dtype=RECORD, chunk_rows=rows
    )


def documents_array(documents: int) -> ChunkedArray:
    """Return the array of the documents' hashes."""
    return ChunkedArray(
        name=DOCUMENTS, rows=documents, width=None, dtype=HASH, chunk_rows=documents
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnState:
    """The vectors of a column in numbers: scale, largest absolute value, sum for the mean."""

    scale: float
    largest: int
    total: tuple[int, ...]

    def mean(self, followed: int) -> NDArray[np.float64]:
        """Return float64[w] to subtract, as `inits.corpus.filled.column_vectors` makes it."""
        if not followed:
            return np.zeros(len(self.total), dtype=np.float64)
        return np.array(self.total, dtype=np.int64).astype(np.float64) / np.float64(followed)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSums:
    """Describes kept sums. `parameters`: those of the init, equal to the table's own.

    `followed`: the number of vectors that each column's total adds up. `layer_scale`: the scale
    that --scale gave every layer, None where it is computed.
    """

    fingerprint: str
    dim: int
    init: str
    parameters: Mapping[str, Any]
    columns: Mapping[tuple[int, int], ColumnState]
    followed: int
    layer_scale: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the attributes of the group."""
        layers: dict[str, list[dict[str, Any]]] = {}
        for layer, column in sorted(self.columns):
            own = self.columns[layer, column]
            entry = {"scale": own.scale, "largest": own.largest, "total": list(own.total)}
            layers.setdefault(str(layer), []).append(entry)
        return {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "init": {"name": self.init, "parameters": dict(self.parameters)},
            "followed": self.followed,
            "layer_scale": self.layer_scale,
            "columns": layers,
        }

    @classmethod
    def from_json(cls, raw: Any, where: Path) -> KeptSums:
        """Return what `raw` describes, every number checked. Raises ArtifactError."""
        try:
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']!r}")
            if raw["version"] != VERSION:
                raise ArtifactError(f"{where} has version {raw['version']!r}", "upgrade engram")
            dim, scale = _count(raw["dim"], 2**16), raw["layer_scale"]
            columns = {
                (int(layer), column): _column(entry, dim)
                for layer, entries in raw["columns"].items()
                for column, entry in enumerate(entries)
            }
            return cls(
                fingerprint=str(raw["fingerprint"]),
                dim=dim,
                init=str(raw["init"]["name"]),
                parameters=dict(raw["init"]["parameters"]),
                columns=columns,
                followed=_count(raw["followed"], _MOST),
                layer_scale=None if scale is None else _positive(scale),
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            about = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactError(f"{where} is damaged: {about}", _REFILL) from None


def _count(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"a number is {value!r}")
    return int(value)


def _positive(value: Any) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and 0 < value < 1e30):
        raise ValueError(f"a scale is {value!r}")
    return float(value)


def _column(entry: Any, dim: int) -> ColumnState:
    total = entry["total"]
    if not isinstance(total, list) or len(total) != dim:
        raise ValueError(f"a total does not have {dim} values")
    if any(type(value) is not int or abs(value) > _MOST for value in total):
        raise ValueError("a value of a total is no integer of 63 bits")
    return ColumnState(
        scale=_positive(entry["scale"]),
        largest=_count(entry["largest"], _LARGEST),
        total=tuple(total),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSums:
    """The sums of the table at `path`, whose files have the sizes that they should have."""

    path: Path
    kept: KeptSums
    rows: Mapping[int, int]
    documents: int

    def map(self, layer: int) -> NDArray[np.int64]:
        """Map int64[rows, 1 + dim]: count and sums of the rows of a layer."""
        file = self.path / sums_array(layer, self.rows[layer], self.kept.dim).file(0)
        shape = self.rows[layer], 1 + self.kept.dim
        return _map(file, RECORD, shape, "c")

    def hashes(self) -> NDArray[np.uint64]:
        """Map the hashes of the documents, ascending."""
        file = self.path / documents_array(self.documents).file(0)
        return _map(file, HASH, (self.documents,), "c")

    @property
    def stored_bytes(self) -> int:
        """Bytes of the arrays."""
        rows = sum(self.rows.values())
        return rows * (1 + self.kept.dim) * RECORD.itemsize + self.documents * HASH.itemsize


def sums_files(layers: Iterable[int]) -> list[str]:
    """Return every file that the sums of a table may consist of, updates that run included."""
    names = [DOCUMENTS, *map(sums_name, layers)]
    chunks = [f"{name}/c.0{'' if name == DOCUMENTS else '.0'}" for name in names]
    own = [*(f"{name}/{META}" for name in [SUMS, *names]), *chunks]
    work = [f"{SUMS}/{name}" for name in WORK_FILES]
    return [*own, *(f"{name}{PART}" for name in [*own, *work]), *work]


def has_sums(table: Path) -> bool:
    """Return whether the table at `table` keeps sums."""
    return (table / SUMS / META).is_file()


def read_sums(table: Path, attributes: Mapping[str, Any], rows: Mapping[int, int]) -> StoredSums:
    """Read what describes the sums of a table, and compare it with the table's `attributes`.

    `rows`: those of each layer. No sum is read. Raises InputError where no sums are kept,
    ArtifactError for sums that are damaged or belong to other rows.
    """
    where = table / SUMS / META
    if not has_sums(table):
        raise InputError(f"{table} keeps no sums", _REFILL)
    kept = KeptSums.from_json(read_json(where, "what describes sums").get("attributes"), where)
    init, dim = attributes["init"], attributes["dim"]
    same = (kept.fingerprint, kept.dim) == (attributes["fingerprint"], dim)
    if not same or (kept.init, dict(kept.parameters)) != (init["name"], init["parameters"]):
        raise ArtifactError(f"{where} describes the sums of another table", _REFILL)
    columns = {layer for layer, _ in kept.columns}
    documents = kept.parameters.get("documents")
    if columns != set(rows) or type(documents) is not int or not 0 < documents < 2**48:
        raise ArtifactError(f"{where} is damaged: it describes other layers", _REFILL)
    arrays = [sums_array(layer, count, dim) for layer, count in rows.items()]
    for array in [*arrays, documents_array(documents)]:
        file = table / array.file(0)
        try:
            size = os.stat(file, follow_symlinks=False).st_size
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror}", _REFILL) from None
        if size != array.file_bytes or file.is_symlink():
            raise ArtifactError(f"{file} has {size} bytes, not {array.file_bytes}", _REFILL)
    return StoredSums(path=table, kept=kept, rows=dict(rows), documents=documents)


def sync_sums(folder: Path, arrays: list[ChunkedArray]) -> None:
    """Write the sums to the disk. Raises OSError."""
    for array in arrays:
        handle = os.open(folder / array.file(0), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def map_sums(folder: Path, layer: int, rows: int, dim: int) -> NDArray[np.int64]:
    """Map the sums of a layer to be written: int64[rows, 1 + dim]."""
    array = sums_array(layer, rows, dim)
    return _map(folder / array.file(0), RECORD, array.shape, "r+")


def _map(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...], mode: Any) -> NDArray[Any]:
    try:
        return np.memmap(file, dtype=dtype, mode=mode, shape=shape)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}", _REFILL) from None
