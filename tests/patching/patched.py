"""Tables and patches of every dtype, for the tests of patches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from table.tables import build, mapped_layout

from engram_cli.commands.artifact import find_artifact
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values
from engram_cli.patches.making import make_patch
from engram_cli.patches.patch import Patch
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource
from engram_cli.table.store import TableStore, open_table

DIM = 33  # two blocks, the last of one value


def table(path: Path, dtype: str = "float32", **options: Any) -> TableStore:
    """A small table of two layers in chunks of 32 rows."""
    build(path, mapped_layout(), dtype=dtype, dim=DIM, **options)
    return open_table(path)


def patch_of(
    base: Any, rows: dict[int, list[int]] | None = None, seed: int = 0, **options: Any
) -> Patch:
    """A patch that gives some rows of `base` random values."""
    generator = np.random.default_rng(seed)
    first, last = base.layout.layer_ids[0], base.layout.layer_ids[-1]
    chosen = rows or {first: [0, 5, 31, 32, 105], last: [7, 64]}
    changed = {
        layer: (ids, (0.02 * generator.standard_normal((len(ids), base.dim))).astype(np.float32))
        for layer, ids in chosen.items()
    }
    return make_patch(base, changed, **options)


def same(one: Patch, two: Patch) -> bool:
    """Whether two patches do the same and say the same."""
    about = ("fingerprint", "dtype", "dim", "base", "base_format", "replaced", "description")
    return (
        one.digest == two.digest
        and all(getattr(one, name) == getattr(two, name) for name in about)
        and dict(one.facts) == dict(two.facts)
    )


ALL_DTYPES = tuple(DTYPES)


def encoded(dtype: str, values: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Rows float32[n, dim] as a dtype stores them, and their scales or the layer's; or None."""
    row_type = DTYPES.load(dtype)
    count, dim = values.shape
    rows = np.empty((count, row_type.width(dim)), dtype=row_type.physical)
    scales = None
    if row_type.scaling is not None:
        scales = np.full(row_type.scaling.shape(count, dim), 0.01).astype(row_type.scaling.dtype)
    row_type.encode(values, rows, scales)
    return rows, scales


def artifact(path: Path, kind: str, dtype: str) -> Path:
    """A table, or a bundle of its rows in several files."""
    if kind == "table":
        table(path, dtype)
        return path
    held = table(path.with_name("source.zarr"), dtype)
    spec = BundleSpec(
        layout=held.layout,
        layers=held.layers,
        dim=held.dim,
        dtype=dtype,
        hidden_size=8,
        num_layers=4,
        model_type="llama",
    )
    write_bundle(
        path,
        spec,
        held.chunks,
        lambda layer, zero: first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero),
        scales=lambda layer: held.chunks(layer, "scales"),
        tool_version="0",
        shard_bytes=4096 + 60 * spec.row_bytes,
    )
    shutil.rmtree(held.path)
    return path


def opened(path: Path) -> RowSource:
    """An artifact's rows."""
    return find_artifact(path).open()


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
