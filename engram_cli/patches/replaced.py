"""The rows of a base that a patch replaces: reads them, compares them, and names them by a digest.

By this digest a patch knows its base in whatever artifact the rows lie: the table that it was made
for, a bundle or a copy of the table, the base under other patches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.patches.patch import LayerPatch
from engram_cli.rows.source import StoredSource


def read_rows(base: StoredSource, layer: int, ids: NDArray[np.int64]) -> LayerPatch:
    """Return the rows of a base at `ids` as stored. Raises InputError, ArtifactError."""
    rows, scales = base.stored(layer, ids)
    return LayerPatch(ids=ids, rows=rows, scales=scales)


def rows_differ(one: LayerPatch, two: LayerPatch) -> NDArray[np.bool_]:
    """Return which rows of two lists under the same numbers have other bytes: bool[n]."""
    found = np.zeros(len(one), dtype=np.bool_)
    for a, b in zip(one.parts(), two.parts(), strict=True):
        found |= (as_bytes(a) != as_bytes(b)).any(axis=1)
    return found


def as_bytes(part: NDArray[Any]) -> NDArray[np.uint8]:
    """Return rows or scales [n, width] as uint8[n, bytes]."""
    width = part.dtype.itemsize * part.shape[1]
    return np.ascontiguousarray(part).view(np.uint8).reshape(len(part), width)


def replaced_digest(layers: Mapping[int, LayerPatch]) -> str:
    """Return the digest of rows as stored, with their numbers and layers, and layer scales."""
    digest = hashlib.sha256(b"engram rows 1\n")
    for layer in sorted(layers):
        own = layers[layer]
        if not len(own):
            continue
        digest.update(f"{layer} {len(own)}\n".encode())
        digest.update(own.ids.astype("<i8", copy=False).tobytes())
        for part in (own.rows, *([] if own.scales is None else [own.scales])):
            digest.update(np.ascontiguousarray(part).view(np.uint8).reshape(-1).data)
    return f"sha256:{digest.hexdigest()}"
