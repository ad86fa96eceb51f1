"""Computes the size of a table from its specification, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engram_cli.commands.init_corpus import FillPlan
from engram_cli.table.build import free_bytes, resumable_bytes
from engram_cli.table.inits.corpus.filled import CorpusFill
from engram_cli.table.spec import TableSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """Holds the bytes of a layer: rows in chunk files, the last one padded, their scales, its hits.

    `row_bytes`: of a row with its scales. `chunk_bytes`: of a chunk of rows alone.
    """

    layer: int
    rows: int
    row_bytes: int
    chunks: int
    chunk_rows: int
    chunk_bytes: int
    scales_bytes: int
    hits_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything that is stored of the layer."""
        return self.chunks * self.chunk_bytes + self.scales_bytes + self.hits_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """Holds the sizes of a table, before anything is written.

    `tokens`: over how many the hits were counted, None where there are no hits. `done_bytes`: what
    a half-built table of the same request has already. `token_rows`, `token_bytes`: what looking up
    one token reads, in all layers. `sums_bytes`: of `total_bytes`, kept for engram update. `fill`:
    None for an init that needs no corpus.
    """

    out: Path
    scheme: str
    fingerprint: str
    orders: tuple[int, ...]
    heads: int
    dim: int
    dtype: str
    init: str
    layers: tuple[LayerPlan, ...]
    tokens: int | None
    lookup_bytes: int
    total_bytes: int
    done_bytes: int
    free_bytes: int
    sums_bytes: int = 0
    fill: FillPlan | None = None

    @property
    def rows(self) -> int:
        """The rows of all layers."""
        return sum(layer.rows for layer in self.layers)

    @property
    def token_rows(self) -> int:
        """Rows read to look up one token."""
        return len(self.layers) * len(self.orders) * self.heads

    @property
    def token_bytes(self) -> int:
        """Bytes of rows read to look up one token."""
        return self.token_rows * self.layers[0].row_bytes

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is still to be written."""
        return self.total_bytes - self.done_bytes <= self.free_bytes


def planned(spec: TableSpec, out: Path, fill: FillPlan | None) -> TablePlan:
    """Return the sizes of `spec` at `out`; `fill`: what filling its rows takes, None without."""
    layout = spec.layout
    return TablePlan(
        out=out,
        scheme=layout.scheme,
        fingerprint=layout.fingerprint,
        orders=layout.orders,
        heads=layout.heads,
        dim=spec.dim,
        dtype=spec.dtype,
        init=spec.init.name,
        layers=layer_plans(spec),
        tokens=spec.tokens,
        lookup_bytes=0 if spec.lookup_array is None else spec.lookup_array.stored_bytes,
        total_bytes=spec.total_bytes,
        done_bytes=resumable_bytes(spec, out),
        free_bytes=free_bytes(out),
        sums_bytes=spec.sums_bytes,
        fill=fill,
    )


def fill_plan(spec: TableSpec, *, known: bool = True) -> FillPlan | None:
    """Return what filling the rows of `spec` takes; None for an init without a corpus.

    `known`: whether the number of passes is known yet.
    """
    init = spec.init
    if not isinstance(init, CorpusFill):
        return None
    passes = 0
    for layer, array in spec.row_arrays.items():
        spans = [array.span(index) for index in range(array.chunks)]
        passes += len(init.passes(layer, spec.dim, spans))
    return FillPlan(
        tokens=init.file.tokens,
        guessed=not init.file.digest,
        passes=passes if known else None,
        memory_bytes=init.memory,
        scratch_bytes=init.scratch_bytes,
    )


def layer_plans(spec: TableSpec) -> tuple[LayerPlan, ...]:
    """Return the bytes of every layer of a table."""
    scales = spec.row_scale_arrays | spec.layer_scale_arrays
    return tuple(
        LayerPlan(
            layer=layer,
            rows=array.rows,
            row_bytes=spec.row_bytes,
            chunks=array.chunks,
            chunk_rows=array.chunk_rows,
            chunk_bytes=array.file_bytes,
            scales_bytes=scales[layer].stored_bytes if layer in scales else 0,
            hits_bytes=spec.hits_arrays[layer].stored_bytes if spec.hits_arrays else 0,
        )
        for layer, array in spec.row_arrays.items()
    )
