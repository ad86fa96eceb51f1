"""Rows as another dtype stores them, where that takes no decoding: the same items and scales."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.rows.views import Requantised

StoredReader = Callable[[int, int, int], list[NDArray[Any]]]
"""Reads rows of a layer from the first one given: [rows], or [rows, scales] under scales of their
own; contiguous, as stored. Runs in threads."""

# Dtypes that are read only, and the one that has the same items and scales in another order.
_REORDERED = {"e8m0_e4m3": "fp8_e8m0"}
_BLOCK, _BLOCK_BYTES = 32, 33
PIECE_BYTES = 2**20  # of rows read at a time
_TASKS = 64  # pieces that are compared before progress is reported
_AGAIN = "check the disk, then convert it again"
_SAMPLES, _SAMPLE_ROWS = 64, 16


def kept_dtype(dtype: str) -> str | None:
    """Return the dtype of tables that holds rows of `dtype` bit for bit, None where none does."""
    dtype = _REORDERED.get(dtype, dtype)
    return dtype if dtype in list(DTYPES) else None


def stored_reader(source: RowSource, dtype: str) -> StoredReader | None:
    """Return what reads the rows of `source` as `dtype` stores them; None if they must be encoded.

    The one scale of a layer is not read: see `layer_scale`.
    """
    if source.dtype is None or dtype not in (source.dtype, kept_dtype(source.dtype)):
        return None
    if isinstance(source, Requantised):
        return lambda layer, first, count: _encoded(source, layer, first, count)
    if source.dtype in _REORDERED and source.dtype != dtype:
        return lambda layer, first, count: _reordered(source.lines(layer, ROWS, first, count))
    scaling = DTYPES.load(dtype).scaling

    def read(layer: int, first: int, count: int) -> list[NDArray[Any]]:
        parts = [source.lines(layer, ROWS, first, count)]
        if scaling is not None and scaling.per != "layer":
            parts.append(source.lines(layer, SCALES, first, count))
        return parts

    return read


def layer_scale(source: RowSource, layer: int) -> NDArray[Any] | None:
    """Return the one scale [1] of a layer, None for a dtype that has none for all rows."""
    if source.dtype is None or not DTYPES.load(source.dtype).of_layer:
        return None
    return source.lines(layer, SCALES, 0, 1)


def sampled_digest(source: RowSource) -> str:
    """Return a digest of some rows of each layer, as stored: it tells other content apart.

    For sources that name no digest. It reads 1,024 rows a layer, so it proves no equality.
    """
    digest = hashlib.sha256(source.layout.fingerprint.encode())
    for layer in source.layers:
        rows = source.layout.layer(layer).rows
        count = min(_SAMPLE_ROWS, rows)
        for first in np.linspace(0, rows - count, _SAMPLES).astype(np.int64).tolist():
            for part in (ROWS, SCALES):
                if part == ROWS or DTYPES.load(source.dtype or "").scaling is not None:
                    digest.update(source.lines(layer, part, first, count).tobytes())
    return f"sampled sha256:{digest.hexdigest()}"


def require_same_rows(
    before: RowSource,
    after: RowSource,
    dtype: str,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> None:
    """Read the rows of both as `dtype` stores them, and compare their bytes.

    Raises ArtifactError, which names the first row of `after` that differs, and for what cannot be
    read.
    """
    wanted, there = stored_reader(before, dtype), stored_reader(after, dtype)
    assert wanted is not None
    assert there is not None
    step = max(1, PIECE_BYTES // DTYPES.load(dtype).row_bytes(before.dim or 1))

    def differing(task: tuple[int, int, int]) -> int | None:
        for a, b in zip(wanted(*task), there(*task), strict=True):
            same = (a.view(np.uint8) == b.view(np.uint8)).all(axis=1)
            if not same.all():
                return task[1] + int(same.argmin())
        return None

    heights = {layer: before.layout.layer(layer).rows for layer in before.layers}
    progress.start("compare", sum(heights.values()), "rows")
    with ThreadPoolExecutor(threads) as pool:
        for layer, rows in heights.items():
            if layer_scale(before, layer) != layer_scale(after, layer):
                raise ArtifactError(f"{after.path}: layer {layer} has another scale", _AGAIN)
            for start in range(0, rows, step * _TASKS):
                stop = min(rows, start + step * _TASKS)
                tasks = [(layer, at, min(step, stop - at)) for at in range(start, stop, step)]
                for row in pool.map(differing, tasks):
                    if row is not None:
                        raise ArtifactError(
                            f"{after.path}: row {row} of layer {layer} is not what was copied",
                            _AGAIN,
                        )
                progress.advance(stop - start)


def _encoded(source: Requantised, layer: int, first: int, count: int) -> list[NDArray[Any]]:
    rows, scales = source.encoded(layer, first, count)
    return [rows] if scales is None or source.row_type.of_layer else [rows, scales]


def _reordered(stored: NDArray[Any]) -> list[NDArray[Any]]:
    """Return items [n, dim] and scales [n, dim / 32] of blocks: a scale, then 32 items."""
    blocks = stored.reshape(len(stored), -1, _BLOCK_BYTES)
    items = np.ascontiguousarray(blocks[:, :, 1:]).reshape(len(stored), -1)
    return [items, np.ascontiguousarray(blocks[:, :, 0])]
