"""Decides where trained rows go, and reads the part of each process out of a bundle's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from engram_cli.errors import InputError, RuntimeAttachError
from engram_cli.formats.bundle import Bundle
from engram_cli.runtime import loading
from engram_cli.runtime.sharding.owners import count_at
from engram_cli.runtime.sharding.trained.rows import ShardedRows
from engram_cli.runtime.tiers.free_memory import free_device_bytes, free_host_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedPlacement:
    """Where trained rows lie: a part of each table with each of `world` processes.

    `rows` of all tables, `own_rows` of them with process `rank`, which take `hbm_bytes`.
    """

    rank: int
    world: int
    rows: int
    own_rows: int
    hbm_bytes: int
    cold = "none"
    group = None

    def lines(self) -> list[str]:
        """Describe the placement."""
        return [
            f"shard: {self.own_rows:,} of {self.rows:,} rows with process {self.rank} of "
            f"{self.world}, {self.hbm_bytes:,} bytes; they learn"
        ]


def placed_rows(
    bundle: Bundle, devices: Mapping[int, torch.device]
) -> tuple[ShardedPlacement, dict[int, ShardedRows]]:
    """Return where the rows of a bundle go, and this process's part of each layer on its device.

    Every process reads its own rows out of the bundle's files. Raises RuntimeAttachError without a
    process group, InputError for rows that do not fit in this process's memory.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeAttachError(
            "placement='shard' distributes trained rows over processes, and there is no group",
            "start with torchrun and call torch.distributed.init_process_group() before attach",
        )
    rank, world = dist.get_rank(), dist.get_world_size()
    spec, used = bundle.spec, set(devices.values())
    if len(used) > 1:
        raise RuntimeAttachError(
            f"placement='shard': the layers are on {', '.join(sorted(map(str, used)))}",
            "give rows_device, one for each process",
        )
    row_bytes = spec.table_bytes // sum(map(spec.rows, spec.layers))
    own = {layer: count_at(spec.rows(layer), rank, world) for layer in spec.layers}
    placement = ShardedPlacement(
        rank=rank,
        world=world,
        rows=sum(map(spec.rows, spec.layers)),
        own_rows=sum(own.values()),
        hbm_bytes=sum(own.values()) * row_bytes,
    )
    device = used.pop()
    there = free_device_bytes(device, free_host_bytes())
    if placement.hbm_bytes > there:
        raise InputError(
            f"the rows of process {rank} of {world} need {placement.hbm_bytes:,} bytes on {device},"
            f" {there:,} are free: {placement.hbm_bytes - there:,} too many",
            "start more processes, with a GPU each",
        )
    found = {}
    for layer in spec.layers:
        pieces = loading.table_pieces(bundle, layer)
        shape = (own[layer], *pieces[0].shape[1:])
        weight = torch.empty(shape, dtype=pieces[0].dtype, device=device)
        loading.fill(weight, owned(pieces, rank, world))
        found[layer] = ShardedRows(weight, spec.rows(layer))
    return placement, found


def owned(pieces: Iterable[Tensor], rank: int, world: int) -> list[Tensor]:
    """Return the lines that a process owns of `pieces` [n, ...] of a whole table, as views."""
    found, begin = [], 0
    for piece in pieces:
        found.append(piece[(rank - begin) % world :: world])
        begin += len(piece)
    return found
