"""Rows as another dtype stores them, where that takes no decoding: the same items and scales."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.gather import FileArray, FileRows
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
    records = _records(source)
    if records is not None and scaling is not None:
        return lambda layer, first, count: _split(records[layer].read(first, count), source)

    def read(layer: int, first: int, count: int) -> list[NDArray[Any]]:
        parts = [source.lines(layer, ROWS, first, count)]
        if scaling is not None and scaling.per != "layer":
            parts.append(source.lines(layer, SCALES, first, count))
        return parts

    return read


def _records(source: RowSource) -> dict[int, FileArray] | None:
    """Return rows and scales as one array, where each row's scales follow its items in the file.

    Reading both at once is twice as fast as one after the other. None for any other source.
    """
    if not isinstance(source, FileRows):
        return None
    found = {}
    for layer in source.layers:
        pair = [source.parts.get((layer, part)) for part in (ROWS, SCALES)]
        if pair[0] is None or pair[1] is None or not pair[1].tail:
            return None
        rows, scales = pair[0], pair[1]
        width = rows.row_bytes + scales.row_bytes
        spans = [replace(span, stride=0) for span in rows.spans]
        follows = [replace(s, begin=s.begin + rows.row_bytes) for s in rows.spans]
        if follows != list(scales.spans) or any(span.stride != width for span in rows.spans):
            return None
        found[layer] = FileArray(spans, np.dtype(np.uint8), (width,), rows.hint)
    return found


def _split(records: NDArray[np.uint8], source: RowSource) -> list[NDArray[Any]]:
    """Return the items and the scales of records, as views."""
    row_type = DTYPES.load(source.dtype or "")
    assert row_type.scaling is not None
    at = row_type.width(source.dim or 0) * row_type.physical.itemsize
    scales = np.ascontiguousarray(records[:, at:]).view(row_type.scaling.dtype)
    return [np.ascontiguousarray(records[:, :at]).view(row_type.physical), scales]


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
        firsts = np.linspace(0, rows - count, _SAMPLES).astype(np.int64)
        # All at once: over a network they are then in flight together.
        stored, scales = source.stored(layer, (firsts[:, None] + np.arange(count)).reshape(-1))
        for index in range(_SAMPLES):
            own = slice(index * count, (index + 1) * count)
            digest.update(stored[own].tobytes())
            if scales is not None:
                digest.update((scales if len(scales) == 1 else scales[own]).tobytes())
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
            a, b = a.view(np.uint8), b.view(np.uint8)
            words = np.uint64 if a[0].nbytes % 8 == 0 else np.uint8
            if not np.array_equal(a.view(words), b.view(words)):
                return task[1] + int((a == b).all(axis=1).argmin())
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
