"""Writes and reads long arrays in a Zarr group; what is read back is checked.

Both are done without zarr, which takes 0.3 s and 30 MB; tests open what was written with it.
Reading takes one chunk at a time, from a folder or from behind an address.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.files import read_json, sha256_bytes, start_writing
from engram_cli.remote.path import look_at
from engram_cli.vocab.lookup import MOST_VOCABULARY

META = "zarr.json"
REMAKE = "make it again with engram hash-stats --force"
_CHUNK = 2**22  # entries of a chunk: 16 MB of counters
_MOST_CHUNKS = 2**16
_WRITERS = 4  # chunks compressed or read at a time: a core compresses 200 MB/s
_LEVEL = 1  # of zstd
_CODECS = (["bytes"], ["bytes", "zstd"])
_ZSTD = b"\x28\xb5\x2f\xfd"


def array_digest(values: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's entries, little-endian, one after another."""
    flat = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).reshape(-1)
    return sha256_bytes(flat.view(np.uint8).data)


def write_arrays(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    dimensions: Mapping[str, str] | None = None,
    meanings: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write arrays of one dimension, each chunk compressed by zstd: most counters are small.

    `dimensions`: the name of each array's dimension, its own name for the others; `meanings`: what
    each holds, for people. Returns the digest of each.
    """
    _write_meta(path, {"attributes": {}, "zarr_format": 3, "node_type": "group"})
    with ThreadPoolExecutor(_WRITERS) as pool:
        written = []
        for name, values in arrays.items():
            dimension, meaning = (dimensions or {}).get(name, name), (meanings or {}).get(name)
            _write_meta(path / name, _described(values, dimension, meaning))
            (path / name / "c").mkdir()
            write = partial(_write_chunk, path / name / "c", values)
            written.append(pool.map(write, range(0, len(values), _CHUNK)))
        digests = {name: pool.submit(array_digest, values) for name, values in arrays.items()}
        for each in written:
            list(each)
    return {name: digest.result() for name, digest in digests.items()}


def read_array(
    path: Path, name: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return a whole array after checking its shape, type, codecs and the sizes of its chunks.

    `path` may be behind an address. `shape` None stands for any vocabulary. A missing chunk is
    zeros, which take no memory until they are read. Raises ArtifactError.
    """
    where = f"{path}/{name}"
    try:
        meta = read_json(path / name / META, "the metadata of an array")
    except (InputError, ArtifactError) as error:
        raise ArtifactError(f"{where} cannot be read: {error.message}", REMAKE) from None
    try:
        length, chunk = _checked(meta, where, shape, dtype)
        values = np.zeros(length, dtype=dtype)
        files = {
            begin: path / name / f"c{chunk.separator}{begin // chunk.rows}"
            for begin in range(0, length, chunk.rows)
        }
        look_at(files.values())
        there = {begin: file for begin, file in files.items() if file.is_file()}
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(partial(_read_chunk, values, chunk), there.items()))
    except EngramError:
        raise
    except MemoryError:
        size = math.prod(meta["shape"]) * dtype.itemsize / 1e9
        raise ArtifactError(
            f"{where} claims {size:,.1f} GB, more than fits in memory", REMAKE
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ArtifactError(f"{where} cannot be read: {error}", REMAKE) from None
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """How an array is divided: entries of a chunk, whether it is compressed, and its files."""

    rows: int
    packed: bool
    separator: str


def _checked(
    meta: dict[str, Any], where: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> tuple[int, _Chunk]:
    """Return the length of an array and its chunks. Raises ArtifactError and what a lookup does."""
    kind, lengths = meta["data_type"], meta["shape"]
    if len(lengths) != 1:
        raise ArtifactError(f"{where} is {kind} of shape {lengths}, not {shape or '[V]'}", REMAKE)
    (length,), (step,) = lengths, meta["chunk_grid"]["configuration"]["chunk_shape"]
    if meta["zarr_format"] != 3 or meta["node_type"] != "array" or type(length) is not int:
        raise ArtifactError(f"{where} is no array of Zarr 3", REMAKE)
    if kind != dtype.name or length < 0 or (shape and (length,) != shape):
        raise ArtifactError(
            f"{where} is {kind} of shape ({length},), not {dtype} of {shape or '[V]'}", REMAKE
        )
    if shape is None and length > MOST_VOCABULARY:
        raise ArtifactError(
            f"{where} claims a vocabulary of {length:,}, more than {MOST_VOCABULARY:,}", REMAKE
        )
    sound = type(step) is int and 0 < step <= max(_CHUNK, 2**22)
    if not sound or -(-length // step) > _MOST_CHUNKS:
        raise ArtifactError(f"{where} has {length:,} entries in chunks of {step}", REMAKE)
    codecs = [str(codec["name"]) for codec in meta["codecs"]]
    endian = meta["codecs"][0].get("configuration", {}).get("endian", "little")
    if codecs not in _CODECS or endian != "little" or meta["fill_value"] != 0:
        raise ArtifactError(f"{where} is stored with {', '.join(codecs)}", REMAKE)
    keys = meta["chunk_key_encoding"]
    separator = keys.get("configuration", {}).get("separator", "/")
    if keys["name"] != "default" or separator not in ("/", "."):
        raise ArtifactError(f"{where} names its chunks in another way", REMAKE)
    return length, _Chunk(rows=step, packed="zstd" in codecs, separator=separator)


def _read_chunk(values: NDArray[Any], chunk: _Chunk, place: tuple[int, Path]) -> None:
    import pyarrow as pa  # a reader of the layout alone needs none

    begin, file = place
    size = chunk.rows * values.itemsize
    if file.stat().st_size > size + size // 64 + 1024:  # more than zstd ever makes of it
        raise ValueError(f"chunk {begin // chunk.rows} has another size than its array says")
    raw = file.read_bytes()
    claimed = _unpacked_bytes(raw[:18]) if chunk.packed else len(raw)
    if claimed != size:
        raise ValueError(f"chunk {begin // chunk.rows} has another size than its array says")
    if chunk.packed:
        raw = pa.Codec("zstd").decompress(raw, decompressed_size=size, asbytes=True)
    own = np.frombuffer(raw, dtype=values.dtype.newbyteorder("<"))
    values[begin : begin + chunk.rows] = own[: len(values) - begin]


def chunk_files(folder: Path, group: str, name: str) -> list[str]:
    """Return the files that the chunks of an array may have, as paths in `folder`.

    Raises ArtifactError, InputError, KeyError, TypeError and ValueError for unsound metadata.
    """
    meta = read_json(folder / group / name / META, "the metadata of an array")
    (rows,), (step,) = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
    there = folder / group / name / "c"
    count = -(-int(rows) // int(step))
    # A damaged length must not make a list of 2^50 names.
    entries = os.listdir(there) if there.is_dir() and not there.is_symlink() else []
    indices = (int(each) for each in entries if each.isascii() and each.isdigit())
    return [f"{group}/{name}/c/{index}" for index in {0, *indices} if index < count]


def _write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    folder.mkdir()
    (folder / META).write_text(json.dumps(meta, indent=2))


def _described(values: NDArray[Any], dimension: str, meaning: str | None) -> dict[str, Any]:
    """Return the metadata of an array of one dimension in compressed chunks, as Zarr 3 has it."""
    zstd = {"name": "zstd", "configuration": {"level": _LEVEL, "checksum": False}}
    return {
        "shape": [len(values)],
        "data_type": values.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [min(_CHUNK, len(values))]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, zstd],
        "attributes": {} if meaning is None else {"long_name": meaning},
        "dimension_names": [dimension],
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _write_chunk(folder: Path, values: NDArray[Any], begin: int) -> None:
    """Write the chunk that begins at an entry, the last one filled up with zeros; none of zeros."""
    import pyarrow as pa

    own = values[begin : begin + _CHUNK]
    if not own.any():
        return
    whole = np.ascontiguousarray(own, dtype=values.dtype.newbyteorder("<"))
    if len(own) < min(_CHUNK, len(values)):
        whole = np.zeros(min(_CHUNK, len(values)), dtype=whole.dtype)
        whole[: len(own)] = own
    packed = pa.Codec("zstd", compression_level=_LEVEL).compress(whole.view(np.uint8), asbytes=True)
    with (folder / str(begin // _CHUNK)).open("wb") as file:
        file.write(packed)
        file.flush()
        start_writing(file.fileno(), 0, 0)  # the disk works while results are computed


def _unpacked_bytes(header: bytes) -> int | None:
    """Return the size that the header of a zstd frame (RFC 8878) claims; None if it claims none.

    The decoder allocates as much as the header claims, whatever the file holds.
    """
    if header[:4] != _ZSTD or len(header) < 6:
        return None
    descriptor = header[4]
    single = descriptor >> 5 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    begin = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(header[begin : begin + width], "little")
    return None if width == 0 else size + (256 if width == 2 else 0)
