"""Bundles of random rows for the tiers, and what their records must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tier_cases import MappedRows
from tiny_models import make_layout, make_spec
from torch import Tensor

from engram_cli.formats.bundle import Bundle, read_bundle
from engram_cli.formats.bundle_spec import SCALES, BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.safetensors import Array
from engram_cli.vocab.compress import CompressedVocab


def random_part(spec: BundleSpec, layer: int, part: str) -> Array:
    """A part of a layer: random bytes, floats without NaN."""
    whole = spec.tensor(layer, part)
    raw = np.random.default_rng([layer, part == SCALES]).bytes(whole.nbytes)
    items = np.frombuffer(raw, dtype=physical_dtype(whole.dtype)).reshape(whole.shape).copy()
    if items.dtype.kind == "f":
        bits = items.view(f"u{items.itemsize}")
        bits &= bits.dtype.type(~(1 << (8 * items.itemsize - 2)) & (2 ** (8 * items.itemsize) - 1))
    return items


def random_bundle(
    path: Path, vocab: CompressedVocab, dtype: str, *, dim: int = 33, shard_rows: int = 10**6
) -> Bundle:
    """A bundle of random bytes, in shards of `shard_rows` rows."""
    spec = make_spec(make_layout(vocab), dtype, dim=dim)

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    write_bundle(
        path,
        spec,
        lambda layer: [(0, random_part(spec, layer, "rows"))],
        dense,
        scales=lambda layer: [(0, random_part(spec, layer, SCALES))],
        tool_version="0",
        shard_bytes=4096 + shard_rows * spec.row_bytes,
    )
    return read_bundle(path)


def records_of(bundle: Bundle, layer: int, rows: Tensor) -> Tensor:
    """The records of `rows` by the plain twin, zero where nothing lies."""
    twin = MappedRows(bundle, layer)
    out = torch.zeros(len(rows), twin.record_bytes, dtype=torch.uint8)
    twin.gather(rows, out)
    return out
