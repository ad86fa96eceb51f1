"""Writes and reads long arrays in a Zarr group; what is read back is checked.

This is the only file of the stage that imports zarr, and only when it is called: zarr takes 0.3 s
and 30 MB. Each call reads one chunk: zarr reads the chunks of a call side by side, and if one is
damaged it abandons the others with a traceback each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError
from engram_cli.files import read_json, sha256_bytes
from engram_cli.vocab.lookup import MOST_VOCABULARY

META = "zarr.json"
REMAKE = "make it again with engram hash-stats --force"
_CHUNK = 2**22  # entries of a chunk: 16 MB of counters
_MOST_CHUNKS = 2**16
_WRITERS = 4  # chunks compressed or read at a time: a core compresses 200 MB/s
_CODECS = (["bytes"], ["bytes", "zstd"])
_ZSTD = b"\x28\xb5\x2f\xfd"


def array_digest(values: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's entries, little-endian, one after another."""
    flat = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).reshape(-1)
    return sha256_bytes(flat.view(np.uint8).data)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Write arrays of one dimension, each chunk compressed by zstd: most counters are small.

    Returns the digest of each.
    """
    import zarr
    import zarr.codecs

    group = zarr.create_group(path, zarr_format=3)
    for name, values in arrays.items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(min(_CHUNK, len(values)),),
            compressors=zarr.codecs.ZstdCodec(level=1),
            fill_value=0,
        )
        write = partial(_write_chunk, array, values)
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(write, range(0, len(values), _CHUNK)))
    return {name: array_digest(values) for name, values in arrays.items()}


def read_array(
    path: Path, name: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return a whole array after checking its shape, type, codecs and the sizes of its chunks.

    `shape` None stands for any vocabulary. A missing chunk is zeros, which take no memory until
    they are read. Raises ArtifactError.
    """
    import zarr

    where = f"{path}/{name}"
    try:
        array: Any = zarr.open_array(path / name, mode="r", zarr_format=3)
        step, packed = _checked_chunk(array, where, shape, dtype)
        values = np.zeros(array.shape, dtype=dtype)
        files = {
            begin: path / name / array.metadata.encode_chunk_key((begin // step,))
            for begin in range(0, len(values), step)
        }
        read = partial(_read_chunk, array, values, step, packed, files)
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(read, [begin for begin, file in files.items() if file.is_file()]))
    except EngramError:
        raise
    except MemoryError:
        size = math.prod(array.shape) * dtype.itemsize / 1e9
        raise ArtifactError(
            f"{where} claims {size:,.1f} GB, more than fits in memory", REMAKE
        ) from None
    except Exception as error:  # zarr raises whatever its parts raise on a damaged file
        raise ArtifactError(f"{where} cannot be read: {error}", REMAKE) from None
    return values


def _checked_chunk(
    array: Any, where: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> tuple[int, bool]:
    """Return the entries of a chunk, and whether it is compressed. Raises ArtifactError."""
    if array.dtype != dtype or array.ndim != 1 or (shape and array.shape != shape):
        raise ArtifactError(
            f"{where} is {array.dtype} of shape {array.shape}, not {dtype} of {shape or '[V]'}",
            REMAKE,
        )
    (length,), (step,) = array.shape, array.chunks
    if shape is None and length > MOST_VOCABULARY:
        raise ArtifactError(
            f"{where} claims a vocabulary of {length:,}, more than {MOST_VOCABULARY:,}", REMAKE
        )
    if not 0 < step <= max(_CHUNK, 2**22) or -(-length // step) > _MOST_CHUNKS:
        raise ArtifactError(f"{where} has {length:,} entries in chunks of {step:,}", REMAKE)
    metadata: Any = array.metadata.to_dict()
    codecs = [str(codec["name"]) for codec in metadata["codecs"]]
    if codecs not in _CODECS:
        raise ArtifactError(f"{where} is stored with {', '.join(codecs)}", REMAKE)
    return int(step), "zstd" in codecs


def _read_chunk(
    array: Any,
    values: NDArray[Any],
    step: int,
    packed: bool,
    files: Mapping[int, Path],
    begin: int,
) -> None:
    with files[begin].open("rb") as file:
        size = _unpacked_bytes(file.read(18)) if packed else file.seek(0, os.SEEK_END)
    if size != step * values.itemsize:
        raise ValueError(f"chunk {begin // step} has another size than its array says")
    values[begin : begin + step] = array[begin : begin + step]


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


def _write_chunk(array: Any, values: NDArray[Any], begin: int) -> None:
    array[begin : begin + _CHUNK] = values[begin : begin + _CHUNK]


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
