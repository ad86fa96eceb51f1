"""Dense weights of checkpoints as float32: floats, float8 by blocks of 32 x 32, ggml's types."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.model_folder import DAMAGED, FoundTensor
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import BLOCK, physical_dtype
from engram_cli.rows.gather import FileArray
from engram_cli.rows.gguf_file import GgufTensor
from engram_cli.rows.source import Span

Floats = NDArray[np.float32]


def read_tensor(name: str, tensor: FoundTensor, scales: FoundTensor | None) -> Floats:
    """Read a tensor as float32; `scales`: of float8 items, one for each block of 32 x 32.

    Raises InputError for a dtype that is not read, ArtifactError.
    """
    if tensor.dtype in ("float32", "float16", "bfloat16") and scales is None:
        flat = tensor.values().reshape(1, -1)
        values = np.empty(flat.shape, dtype=np.float32)
        DTYPES.load(tensor.dtype).decode(flat, None, values)
        return values.reshape(tensor.shape)
    pair = tensor.dtype, None if scales is None else scales.dtype
    if scales is None or pair != ("float8_e4m3fn", "float8_e8m0fnu") or len(tensor.shape) != 2:
        raise InputError(
            f"{name} is {pair[0]} with scales of {pair[1]}",
            "weights of floats are read, and float8_e4m3fn with float8_e8m0fnu by 32 x 32",
        )
    rows, width = tensor.shape
    if scales.shape != (-(-rows // BLOCK), -(-width // BLOCK)):
        raise ArtifactError(f"{name} is {tensor.shape}, its scales are {scales.shape}", DAMAGED)
    by_row = np.repeat(scales.values(), BLOCK, axis=0)[:rows]
    values = np.empty((rows, width), dtype=np.float32)
    DTYPES.load("fp8_e8m0").decode(tensor.values(), by_row, values)
    return values


def side_by_side(found: Sequence[FoundTensor]) -> Floats:
    """Read matrices [d, n] as one, [d, sum of n]."""
    parts = [read_tensor(tensor.place.spec.name, tensor, None) for tensor in found]
    return np.concatenate(parts, axis=1)


def read_gguf_tensor(tensor: GgufTensor) -> Floats:
    """Read a tensor of a GGUF file as float32. Raises InputError for a type that is not read."""
    *rows, width = tensor.shape
    count = int(np.prod(rows, dtype=np.int64))
    if tensor.type not in ("float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_k", "q6_k"):
        raise InputError(
            f"{tensor.name} is {tensor.type}, which is not read",
            "F32, F16, BF16, Q8_0, Q4_0, Q4_K and Q6_K are",
        )
    row_type = DTYPES.load(tensor.type)
    stored = physical_dtype(row_type.items.tensor)
    span = Span(file=tensor.file, begin=tensor.begin, first=0, rows=count)
    array = FileArray([span], stored, (row_type.width(width),), DAMAGED)
    values = np.empty((count, width), dtype=np.float32)
    row_type.decode(array.read(0, count), None, values)
    return values


def less_one(read: Callable[[], Floats]) -> Floats:
    """Read a norm's weight to which the file's writer added one."""
    return read() - np.float32(1)
