"""Small tables distributed over ranks, on any devices, and what they must read as."""

from __future__ import annotations

from dataclasses import replace

import torch
from tier_cases import hot_rows, layer_scale, random_records, tier_spec
from torch import Tensor

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.reference import HashTensors
from engram_cli.runtime.sharding.group import ShardGroup
from engram_cli.runtime.sharding.rows import ShardedTables
from engram_cli.runtime.tables import Table
from engram_cli.runtime.tiers.hot_set import hot_set
from engram_cli.runtime.tiers.records import table_of

KINDS = {
    "float32": 12,
    "float16": 24,
    "bfloat16": 64,
    "fp8_e8m0": 256,
    "fp8": 7,
    "int8": 33,
    "int8_b32": 33,
    "int4": 7,
}


def whole(dtype: str, device: torch.device) -> tuple[BundleSpec, HashTensors, list[Table]]:
    """Return two layers' hash and tables, in one place."""
    spec = tier_spec(dtype, KINDS[dtype])
    scale = layer_scale(spec)
    tables = []
    for layer in spec.layers:
        records = random_records(spec, spec.rows(layer)).roll(layer, 0)
        table = table_of(records, spec, layer_scale=scale)
        scales = None if table.scales is None else table.scales.contiguous().to(device)
        tables.append(replace(table, values=table.values.contiguous().to(device), scales=scales))
    return spec, hash_tensors(spec.layout, spec.layers, device=device), tables


def distribute(
    spec: BundleSpec,
    tables: list[Table],
    group: ShardGroup,
    readers: list[torch.device],
    *,
    dtype: torch.dtype = torch.float32,
    scales_here: bool | None = None,
    share: float = 0.0,
) -> ShardedTables:
    """Return the same rows distributed; `share` of them hot, with a copy on each reader."""
    made = ShardedTables(spec, group, readers, dtype=dtype, scales_here=scales_here)
    world, parts = made.group.world, len(made.blocks.widths)
    for place, table in enumerate(tables):
        for rank in made.group.ranks:
            for part, values in enumerate((table.values, table.scales)[:parts]):
                assert values is not None
                held = made.held(rank, place, part)
                held.copy_(values[rank::world].reshape(held.shape))
    chosen = [hot_rows(rows, share) for rows in made.blocks.heights]
    for device, copies in made.copies.items():
        if parts == 1 and tables[0].scales is not None:
            scales = tuple(_scales(table).to(device) for table in tables)
            copies = replace(copies, scales=scales)
        if share:
            picked = [torch.from_numpy(rows) for rows in chosen]
            rows = tuple(
                table.values[own.to(table.values.device)].to(device)
                for table, own in zip(tables, picked, strict=True)
            )
            beside = None
            if parts > 1:
                beside = tuple(
                    _scales(table)[own.to(table.values.device)].to(device)
                    for table, own in zip(tables, picked, strict=True)
                )
            sets = tuple(
                hot_set(own, height, device)
                for own, height in zip(chosen, made.blocks.heights, strict=True)
            )
            copies = replace(copies, rows=rows, row_scales=beside, sets=sets)
        made.copies[device] = copies
    return made


def _scales(table: Table) -> Tensor:
    assert table.scales is not None
    return table.scales


def simulated(world: int, device: torch.device) -> ShardGroup:
    """Return ranks that are all on one device."""
    return ShardGroup(world=world, devices=(device,) * world)
