"""The byte arithmetic of attach: what a bundle takes on disk and in memory, by its shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engram_cli.formats.bundle_spec import BundleSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachCost:
    """The byte arithmetic: on disk and in memory, and what a token reads.

    `disk_bytes` is what the bundle itself takes: without the table where it only refers to it.
    `hits_bytes`: of the rows' hits, 0 where the table has none.
    """

    disk_bytes: int
    table_bytes: int
    hits_bytes: int
    dense_bytes: int
    dense_parameters: int
    token_rows: int
    token_bytes: int


def attach_cost(
    spec: BundleSpec,
    *,
    reference: bool = False,
    counted: bool = False,
    hits_inside: bool = False,
) -> AttachCost:
    """Return what the bundle takes, from its shapes alone; `counted`: there are hits.

    `hits_inside`: the bundle has them itself, whatever it refers to.
    """
    count = sum(int(np.prod(shape)) for shape in spec.dense_shapes.values()) * len(spec.layers)
    token_rows = spec.layout.columns * len(spec.layers)
    lookup = 0 if spec.layout.lookup is None else spec.layout.lookup.nbytes
    hits = spec.hits_bytes if counted else 0
    return AttachCost(
        disk_bytes=(0 if reference else spec.table_bytes)
        + (hits if hits_inside or not reference else 0)
        + 4 * count
        + lookup,
        table_bytes=spec.table_bytes,
        hits_bytes=hits,
        dense_bytes=4 * count,
        dense_parameters=count,
        token_rows=token_rows,
        token_bytes=token_rows * spec.row_bytes,
    )


def describe_cost(
    spec: BundleSpec, cost: AttachCost, out: Path, reference: bool = False
) -> list[str]:
    """Return the sizes as lines to read."""
    rows = " + ".join(f"{spec.rows(layer):,}" for layer in spec.layers)
    where = "in the table's own files" if reference else "on disk"
    hits = ""
    if cost.hits_bytes:
        hits = f"; {cost.hits_bytes:,} bytes of hits, which say which rows are hot"
    places = ", ".join(spec.label(layer) for layer in spec.layers)
    into = f"into decoder layer{'s' if len(spec.layers) > 1 else ''} {places}, counted from 0"
    return [
        f"{into}: {rows} rows x {spec.dim} x {spec.dtype} "
        f"= {cost.table_bytes:,} bytes {where}, as much in memory when all of it is touched{hits}",
        f"{spec.module.kind} module: {cost.dense_parameters:,} dense parameters, "
        f"{cost.dense_bytes:,} bytes",
        f"a token reads {cost.token_rows} rows, {cost.token_bytes:,} bytes; bundle: {out}",
    ]
