"""From an opened bundle to torch: the hash, a layer's table, a layer's module."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import HITS, ROWS, SCALES
from engram_cli.hashing.layout import HashLayout, dead_tokens
from engram_cli.rows.safetensors import Array
from engram_cli.runtime.modules import MODULES
from engram_cli.runtime.modules.base import (
    AnyRows,
    MemoryModule,
    MultiHeadEmbedding,
    Rows,
    StoredRows,
    load_dense,
)
from engram_cli.runtime.reference import HashTensors
from engram_cli.runtime.tiers import PlacedRows
from engram_cli.vocab.lookup import HOLE

_APART_ROWS = 2**18  # copied at once, where others lie between them


def hash_tensors(
    layout: HashLayout,
    layers: tuple[int, ...],
    *,
    vocab_size: int = 0,
    device: torch.device | str = "cpu",
) -> HashTensors:
    """Return the hash of `layers` as tensors on `device`.

    Ids from the layout's vocabulary up to `vocab_size`, which models pad their embedding with, are
    holes, and so are dead tokens that the layout names.
    """
    lookup = np.full(max(layout.vocab_size, vocab_size), HOLE, dtype=np.int32)
    own = np.arange(layout.compressed_size) if layout.lookup is None else layout.lookup
    lookup[: len(own)] = own
    lookup[dead_tokens(layout)] = HOLE  # which blocks as a dead token does
    entries = [layout.layer(layer) for layer in layers]
    summed = layout.fold == "powers"
    lines = layout.columns if summed else len(layout.orders)
    multipliers = torch.zeros(len(layers), lines, layout.max_order, dtype=torch.int64)
    for i, entry in enumerate(entries):
        for j in range(lines):
            order = layout.orders[j // layout.heads if summed else j]
            by_lag = layout.weights(entry, j) if summed else layout.lag_multipliers(entry, order)
            multipliers[i, j, : len(by_lag)] = torch.tensor(by_lag)
    columns = [
        [
            (modulus, (2**64 - 1) // modulus, offset, salt)
            for modulus, offset, salt in zip(entry.moduli, entry.offsets, entry.salts, strict=True)
        ]
        for entry in entries
    ]
    return HashTensors(
        orders=layout.orders,
        filler=layout.filler_id,
        eos=layout.eos_id,
        shared=layout.fold == "newest-first",
        summed=summed,
        lookup=torch.from_numpy(lookup).to(device),
        multipliers=multipliers.to(device),
        columns=torch.tensor(columns, dtype=torch.int64, device=device),
        salted=any(salt for entry in entries for salt in entry.salts),
        heights=tuple(sum(entry.moduli) for entry in entries),
    )


def table(
    bundle: Bundle, layer: int, part: str = ROWS, device: torch.device | str = "cpu"
) -> Tensor:
    """Return a layer's rows or scales on `device`, as `StoredRows` or `Rows` hold them.

    On the CPU one file is mapped: its pages are read when touched and copied when changed. Several
    are copied into one tensor.
    """
    pieces = table_pieces(bundle, layer, part)
    device = torch.device(device)
    if len(pieces) == 1 and (pieces[0].is_contiguous() or device.type == "cpu"):
        return pieces[0].to(device)
    lines = sum(map(len, pieces))
    whole = torch.empty((lines, *pieces[0].shape[1:]), dtype=pieces[0].dtype, device=device)
    fill(whole, pieces)
    return whole


def fill(whole: Tensor, pieces: Sequence[Tensor]) -> None:
    """Copy `pieces` into `whole`, one after another."""
    begin = 0
    for piece in pieces:
        # torch gathers rows that lie apart in memory before it copies them to a device.
        parts = (piece,) if piece.is_contiguous() else torch.split(piece, _APART_ROWS)
        for part in parts:
            whole[begin : begin + len(part)].copy_(part)
            begin += len(part)


def table_pieces(bundle: Bundle, layer: int, part: str = ROWS) -> list[Tensor]:
    """Return a layer's shards of rows or scales, ascending, mapped.

    bfloat16 goes by its bits, and scales are integers of their size (`StoredRows`).
    """
    maps = bundle.maps(layer, part)
    if part == SCALES:
        return [
            torch.from_numpy(map if map.itemsize == 1 else map.view(f"<i{map.itemsize}"))
            for map in maps
        ]
    if bundle.spec.tensor(layer, part).dtype == "bfloat16":
        return [torch.from_numpy(map.view(np.int16)).view(torch.bfloat16) for map in maps]
    return [torch.from_numpy(map) for map in maps]


def hits(bundle: Bundle) -> dict[int, list[Array]]:
    """Return the hits of each layer's rows, uint32 and mapped, one array a shard; {} without."""
    if not bundle.has_hits:
        return {}
    return {layer: bundle.maps(layer, HITS) for layer in bundle.spec.layers}


def rows_of(
    bundle: Bundle, layer: int, device: torch.device, *, trainable: bool, sparse: bool
) -> Rows | StoredRows:
    """Return a layer's rows on `device`: a parameter of floats, or quantised rows as stored."""
    row_type = bundle.spec.row_type
    values = table(bundle, layer, ROWS, device)
    if not row_type.quantised:
        return Rows(values, trainable=trainable, sparse=sparse)
    scales = table(bundle, layer, SCALES, device)
    return StoredRows(values, scales, row_type=row_type, dim=bundle.spec.dim)


def module(
    bundle: Bundle, layer: int, rows: AnyRows, *, device: torch.device, dtype: torch.dtype
) -> MemoryModule:
    """Return a layer's module: dense weights in `dtype` on `device`, and its rows."""
    spec = bundle.spec
    held = rows.device if isinstance(rows, PlacedRows) else rows.weight.device
    offsets = torch.tensor(spec.layout.layer(layer).offsets, device=held)
    with torch.device("meta"):
        built = MODULES.load(spec.module.kind)(spec, MultiHeadEmbedding(rows, offsets))
    dense = bundle.dense[layer].items()
    load_dense(built, {n: torch.from_numpy(np.array(v)).to(device, dtype) for n, v in dense})
    return built
