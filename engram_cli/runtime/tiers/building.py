"""Makes the tiered layers of a bundle for a placement such as "hbm=20GB,host=64GB".

`resolve_for` decides the placement, and refuses what does not fit before anything is allocated.
`stores_of` makes a `TieredEmbedding` for each layer.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import SCALES, BundleSpec
from engram_cli.runtime.tables import FLOATS
from engram_cli.runtime.tiers.disk_rows import DiskRows
from engram_cli.runtime.tiers.host_rows import HostRows
from engram_cli.runtime.tiers.placement import (
    Free,
    LayerPlacement,
    Placement,
    Staging,
    Wanted,
    parse_placement,
    resolve,
)
from engram_cli.runtime.tiers.protocol import RowSource
from engram_cli.runtime.tiers.staging_ring import StagingQueue, Tuning, local_tuning
from engram_cli.runtime.tiers.tier_records import record_layout
from engram_cli.runtime.tiers.tiered_embedding import TieredEmbedding
from engram_cli.sizes import read_size

HOST_MEMORY = "ENGRAM_HOST_MEMORY"
_EVERYTHING = Wanted(cold="none")
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def resolve_for(bundle: Bundle, placement: str, devices: Mapping[int, torch.device]) -> Placement:
    """Resolve `placement` for a bundle whose layers run on `devices`, by layer.

    Raises InputError where it cannot be parsed, or does not fit in free memory.
    """
    wanted, spec = parse_placement(placement), bundle.spec
    used = set(devices.values())
    hits = {layer: bundle.hits(layer) for layer in spec.layers} if bundle.has_hits else None
    tuning = _tuning(spec, used)
    staging = Staging(
        hbm=len(used) * tuning.device_bytes,
        host=len(used) * tuning.pinned_bytes,
        gpu=any(device.type != "cpu" for device in used),
    )
    if wanted == _EVERYTHING and all(device.type == "cpu" for device in used):
        # On a CPU the files of a bundle are mapped, and need no memory of their own.
        unlimited = Free(hbm=spec.table_bytes, host=0)
        return resolve(spec, hits, wanted, unlimited, staging=staging)
    host = free_host_bytes()
    free = Free(hbm=sum(_free_bytes(device, host) for device in used), host=host)
    return resolve(spec, hits, wanted, free, staging=staging)


def stores_of(
    bundle: Bundle,
    placement: Placement,
    homes: Mapping[int, tuple[torch.dtype, torch.device]],
) -> dict[int, TieredEmbedding]:
    """Make each layer's rows as placed; `homes`: dtype and device of its dense weights."""
    tuning = _tuning(bundle.spec, {device for _, device in homes.values()})
    staging_queues: dict[torch.device, StagingQueue] = {}
    return {
        layer: _store(bundle, own, *homes[layer], staging_queues, tuning)
        for layer, own in placement.layers.items()
    }


def _tuning(spec: BundleSpec, devices: Collection[torch.device]) -> Tuning:
    """Return this machine's tuning, bounded for a memory on distinct `devices`."""
    rows = sum(spec.rows(layer) for layer in spec.layers)
    return local_tuning().within(rows, record_layout(spec).record_bytes, devices=len(devices))


def _store(
    bundle: Bundle,
    placed: LayerPlacement,
    dtype: torch.dtype,
    device: torch.device,
    staging_queues: dict[torch.device, StagingQueue],
    tuning: Tuning,
) -> TieredEmbedding:
    layer = placed.layer
    if device not in staging_queues:
        staging_queues[device] = StagingQueue(device, tuning)
    cold: RowSource
    if placed.cold == "host":
        cold = HostRows.of_bundle(bundle, layer, pinned=device.type == "cuda")
    else:
        cold = DiskRows(bundle, layer, cache_bytes=placed.cache_bytes)
    return TieredEmbedding(
        bundle.spec,
        cold,
        device=device,
        hot_rows=placed.hot_rows,
        layer_scale=_layer_scale(bundle, layer),
        dtype=dtype if dtype in FLOATS else torch.float32,
        staging_queue=staging_queues[device],
        origin=(bundle, layer),
    )


def _layer_scale(bundle: Bundle, layer: int) -> Tensor | None:
    if not bundle.spec.row_type.of_layer:
        return None
    return torch.from_numpy(np.array(bundle.maps(layer, SCALES)[0], dtype=np.float32))


def free_host_bytes() -> int:
    """Return the free host memory: what the system reports, at most what the control group leaves.

    ENGRAM_HOST_MEMORY=SIZE sets it instead, for machines whose memory grows as it is used. Raises
    InputError for a size that cannot be parsed.
    """
    said = os.environ.get(HOST_MEMORY)
    if said:
        try:
            return read_size(said)
        except ValueError as error:
            raise InputError(f"{HOST_MEMORY}: {error}", "give a size such as 100GB") from None
    found = _of_system()
    return found if (group := _of_group()) is None else min(found, group)


def _of_system() -> int:
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_group() -> int | None:
    """Return what a control group leaves, cached files not counted; None without a limit."""
    try:
        limit = int((_GROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_GROUP / "memory.current").read_text(encoding="ascii"))
        lines = (_GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        files = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration, IndexError):
        return None
    return max(0, limit - used + files)


def _free_bytes(device: torch.device, host: int) -> int:
    """Return the free memory of a device, including what torch reserved and does not use."""
    if device.type != "cuda":
        return host
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + unused
