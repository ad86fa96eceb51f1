"""Long arrays in a Zarr group: arrays in, a folder out, and checked the way back.

The only door to `zarr` of this stage. It is imported when it is used: it takes 0.3 s and 30 MB,
which a count needs at its end alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError

REMAKE = "make it again with engram hash-stats --force"
_CHUNK = 2**22  # entries of a chunk: 16 MB of counters
_WRITERS = 4  # chunks compressed at a time: a core manages 200 MB/s
_CODECS = {"bytes", "zstd"}


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of one dimension, each chunk compressed by zstd: most counters are small."""
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


def read_array(
    path: Path, name: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """A whole array; its shape, type and codecs are checked before it is read.

    Raises ArtifactError.
    """
    import zarr

    where = f"{path}/{name}"
    try:
        array = zarr.open_array(path / name, mode="r", zarr_format=3)
        metadata: Any = array.metadata.to_dict()
        codecs = {str(codec["name"]) for codec in metadata["codecs"]}
        if array.dtype != dtype or array.ndim != 1 or (shape and array.shape != shape):
            raise ArtifactError(
                f"{where} is {array.dtype} of shape {array.shape}, not {dtype} of {shape or '[V]'}",
                REMAKE,
            )
        if not codecs <= _CODECS:
            raise ArtifactError(f"{where} is stored with {', '.join(sorted(codecs))}", REMAKE)
        values: NDArray[Any] = np.asarray(array[:])
    except EngramError:
        raise
    except Exception as error:  # zarr raises whatever its parts raise on a damaged file
        raise ArtifactError(f"{where} cannot be read: {error}", REMAKE) from None
    return values


def _write_chunk(array: Any, values: NDArray[Any], begin: int) -> None:
    array[begin : begin + _CHUNK] = values[begin : begin + _CHUNK]
