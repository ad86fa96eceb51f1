"""From a bundle to rows that are distributed: each rank reads its own from the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES
from engram_cli.runtime import loading
from engram_cli.runtime.sharding.group import ShardGroup, raise_together, wait_for_all
from engram_cli.runtime.sharding.rows import DistributedRows, ShardedTables
from engram_cli.runtime.sharding.trained.placing import owned
from engram_cli.runtime.tables import FLOATS
from engram_cli.runtime.tiers import with_index
from engram_cli.runtime.tiers.hot_set import hot_set

_PARTS = (ROWS, SCALES)


def load_distributed(
    bundle: Bundle,
    group: ShardGroup,
    homes: Mapping[int, tuple[torch.dtype, torch.device]],
    copied: Mapping[int, NDArray[np.int64]] | None = None,
) -> dict[int, DistributedRows]:
    """Load each layer's rows, distributed over `group`; `homes`: dtype and device of its weights.

    `copied`: rows of each layer, int64 and ascending, that every GPU gets a copy of. Collective.
    """
    dtypes = {dtype for dtype, _ in homes.values()}
    common = dtypes.pop() if len(dtypes) == 1 else torch.float32
    readers = {with_index(device): None for _, device in homes.values()}
    tables = ShardedTables(
        bundle.spec, group, list(readers), dtype=common if common in FLOATS else torch.float32
    )
    with raise_together(tables.group):
        _fill(tables, bundle)
        _copy(tables, bundle, copied)
    wait_for_all(tables.group)
    return {
        layer: DistributedRows(tables, place, homes[layer][1], (bundle, layer))
        for place, layer in enumerate(bundle.spec.layers)
    }


def _fill(tables: ShardedTables, bundle: Bundle) -> None:
    for place, layer in enumerate(bundle.spec.layers):
        for part in range(len(tables.blocks.widths)):
            pieces = loading.table_pieces(bundle, layer, _PARTS[part])
            for rank in tables.group.ranks:
                held = tables.held(rank, place, part).view(pieces[0].dtype)
                own = owned(pieces, rank, tables.group.world)
                loading.fill(held.view(-1, *pieces[0].shape[1:]), own)


def _copy(
    tables: ShardedTables, bundle: Bundle, copied: Mapping[int, NDArray[np.int64]] | None
) -> None:
    """Give each reading GPU copies of rows, and all scales where they are not with the rows."""
    layers, row_type = bundle.spec.layers, bundle.spec.row_type
    scales_here = row_type.scaling is not None and len(tables.blocks.widths) == 1
    for device, held in tables.copies.items():
        made = held
        if scales_here:
            scales = (loading.table(bundle, layer, SCALES, device) for layer in layers)
            made = replace(made, scales=tuple(tables.blocks.typed(each, 1) for each in scales))
        if copied is not None:
            sets = tuple(
                hot_set(copied[layer], bundle.spec.rows(layer), device) for layer in layers
            )
            parts = [
                tuple(
                    _picked(bundle, layer, _PARTS[part], copied[layer], device) for layer in layers
                )
                for part in range(len(tables.blocks.widths))
            ]
            rows = tuple(tables.blocks.typed(each, 0) for each in parts[0])
            row_scales = None
            if len(parts) > 1:
                row_scales = tuple(tables.blocks.typed(each, 1) for each in parts[1])
            made = replace(made, rows=rows, row_scales=row_scales, sets=sets)
        tables.copies[device] = made


def _picked(
    bundle: Bundle, layer: int, part: str, rows: NDArray[np.int64], device: torch.device
) -> Tensor:
    """Return rows or scales of a layer on a device, uint8 [len(rows), width]; one at least."""
    found, first = [], 0
    for piece in loading.table_pieces(bundle, layer, part):
        begin, end = np.searchsorted(rows, [first, first + len(piece)])
        if part == SCALES and piece.ndim == 1:
            piece = piece[:, None]
        chosen = piece[torch.from_numpy(rows[begin:end] - first)]
        found.append(chosen.contiguous().view(torch.uint8))
        first += len(piece)
    whole = torch.cat(found)
    if not len(whole):
        whole = whole.new_zeros(1, whole.shape[1])
    return whole.to(device)
