"""Bundles whose rows are stored as each codec stores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import make_layout, make_spec

from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values
from engram_cli.rows import DTYPES
from engram_cli.vocab.compress import CompressedVocab

QUANTISED = tuple(name for name in DTYPES if DTYPES.load(name).quantised)
DIM = 33  # two blocks, the last of one value


def stored(dtype: str, rows: int, dim: int, layer: int) -> tuple[Any, Any]:
    """Rows and scales as the codec stores random values, NaN among them."""
    codec = DTYPES.load(dtype)
    values = np.random.default_rng(layer).standard_normal((rows, dim)).astype(np.float32)
    values[3, 2] = np.nan
    assert codec.scaling is not None
    whole = codec.scaling.per == "layer"
    shape = (1,) if whole else (rows, codec.scaling.width(dim))
    items = np.empty((rows, codec.width(dim)), dtype=codec.physical)
    scales = np.full(shape, 0.01, dtype=codec.scaling.dtype) if whole else np.empty(
        shape, dtype=codec.scaling.dtype
    )  # fmt: skip
    codec.encode(values, items, scales)
    return items, scales


def quantised_bundle(
    path: Path, vocab: CompressedVocab, dtype: str, *, dim: int = DIM, nan: bool = False
) -> Path:
    spec = make_spec(make_layout(vocab), dtype, dim=dim)
    held = {layer: stored(dtype, spec.rows(layer), dim, layer) for layer in spec.layers}
    if not nan:  # a row like its neighbour instead
        for items, scales in held.values():
            items[3] = items[4]
            if len(scales) > 1:
                scales[3] = scales[4]

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    write_bundle(
        path,
        spec,
        lambda layer: [(0, held[layer][0])],
        dense,
        scales=lambda layer: [(0, held[layer][1])],
        tool_version="0",
        shard_bytes=4096 + 100 * spec.row_bytes,  # rows in several files
    )
    return path
