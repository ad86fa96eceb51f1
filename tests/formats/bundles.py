"""Small bundles with different bytes everywhere, for the tests of the format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.safetensors import Array
from engram_cli.vocab.compress import CompressedVocab

DIM = 6


def make_spec(vocab: CompressedVocab | None, dtype: str = "float32", **options: Any) -> BundleSpec:
    common: dict[str, Any] = {"orders": (2, 3), "heads": 2, "rows_per_head": 50}
    if vocab is None:
        layout = hash_layout("qwen-ple", vocab_size=100, eos_id=3, layers=(1, 4), **common)
    else:
        layout = hash_layout("engram-v1", vocab, layers=(1, 3), **common)
    return BundleSpec(
        layout=layout,
        layers=layout.layer_ids,
        dim=DIM,
        dtype=dtype,
        hidden_size=8,
        num_layers=4,
        model_type="llama",
        **options,
    )


def table_of(spec: BundleSpec, layer: int) -> Array:
    """A layer's table with different bytes everywhere, physical dtype."""
    generator = np.random.default_rng(layer)
    values = generator.standard_normal((spec.rows(layer), spec.dim)).astype(np.float32)
    if spec.dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(physical_dtype(spec.dtype))


def hits_of(spec: BundleSpec, layer: int) -> Array:
    """Hits of a layer's rows, the largest there can be among them."""
    drawn = np.random.default_rng(100 + layer).integers(0, 50, spec.rows(layer), dtype=np.uint32)
    drawn[7] = 2**32 - 1
    return drawn


def hits_in_chunks(spec: BundleSpec, step: int) -> Callable[[int], Iterator[tuple[int, Array]]]:
    def hits(layer: int) -> Iterator[tuple[int, Array]]:
        own = hits_of(spec, layer)
        for first in range(0, len(own), step):
            yield first, own[first : first + step]

    return hits


def in_chunks(spec: BundleSpec, step: int) -> Callable[[int], Iterator[tuple[int, Array]]]:
    def rows(layer: int) -> Iterator[tuple[int, Array]]:
        table = table_of(spec, layer)
        for first in range(0, len(table), step):
            yield first, table[first : first + step]

    return rows


def write(spec: BundleSpec, path: Path, **options: Any) -> list[Any]:
    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    rows = options.pop("rows", in_chunks(spec, 37))
    return write_bundle(path, spec, rows, dense, tool_version="0", **options)


def put(*path: Any) -> Any:
    """Changes a document: the value, the last argument, goes to the place that the others name."""
    *keys, last, value = path

    def change(document: Any) -> None:
        for key in keys:
            document = document[key]
        document[last] = value

    return change
