"""Decides which rows are stored where, from the request, a bundle's hits and the free memory.

The decision is made in bytes, before anything is allocated; what does not fit is refused. Nothing
falls back to another tier than the one asked for. `Placement.lines` describe the result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.sharding.blocks import block_bytes, copy_bytes
from engram_cli.runtime.sharding.group import ShardGroup, find_group, raise_together
from engram_cli.runtime.tiers.disk import SCRATCH_BYTES
from engram_cli.runtime.tiers.free_memory import Free, free_device_bytes, free_host_bytes
from engram_cli.runtime.tiers.hot_set import Hottest, hot_set_bytes, hottest
from engram_cli.runtime.tiers.records import record_layout
from engram_cli.runtime.tiers.row_cache import slot_bytes
from engram_cli.runtime.tiers.shared_rows import SharedHostRows, shares_by_default
from engram_cli.runtime.tiers.staging import Tuning, local_tuning
from engram_cli.runtime.tiers.wanted import Cold, Wanted, parse_placement

DEFAULT_CACHE_BYTES = 4 * 2**30  # of all layers, for rows on disk, where no size is given
LEAST_CACHE_BYTES = 2**20  # of a layer


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlacement:
    """A layer: `hot_rows` int64 ascending are in HBM, all rows are in the `cold` tier.

    `cold` is "none" where all rows are in HBM; `hot_rows` are empty then. `cache_bytes`: memory
    of the host to cache rows on disk.
    """

    layer: int
    hot_rows: NDArray[np.int64]
    cold: Cold
    cache_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """The most bytes that staged records take, of all layers together.

    Without a `gpu`, rows in host memory are read in place, and "HBM" is plain memory.
    """

    hbm: int = 0
    host: int = 0
    gpu: bool = True

    def of(self, cold: Cold) -> Staging:
        """Return the staging needed where rows that are not hot are in the `cold` tier."""
        return self if self.gpu or cold == "disk" else replace(self, hbm=0, host=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The resolved placement, with the bytes of all layers by tier, `staging` included.

    `caught`: the share of the counted look-ups that the hot rows serve, None without hits. `group`:
    the GPUs over which rows in HBM are distributed; then bytes of HBM are those of each GPU, and
    hot rows of rows that are all in HBM are those that each GPU has a copy of.
    `shared`: the rows on the host are one copy for all processes.
    """

    spec: BundleSpec
    layers: Mapping[int, LayerPlacement]
    hbm_bytes: int
    host_bytes: int
    disk_bytes: int
    staging: Staging
    caught: float | None = None
    shared: bool = False
    group: ShardGroup | None = None

    @property
    def copied(self) -> dict[int, NDArray[np.int64]] | None:
        """Return the rows of each layer that every GPU has a copy of, None where there are none."""
        found = {layer: own.hot_rows for layer, own in self.layers.items()}
        return found if self.group is not None and any(map(len, found.values())) else None

    @property
    def cold(self) -> Cold:
        """Return the tier of the rows that are not hot, the same in all layers."""
        return next(iter(self.layers.values())).cold

    def lines(self) -> list[str]:
        """Describe the placement, one line for each tier that is used."""
        rows = sum(self.spec.rows(layer) for layer in self.layers)
        if self.group is not None:
            return [*self._shard_lines(rows, self.group.world), *self._cold_lines(rows)]
        if self.cold == "none":
            return [f"{self._near}: all {rows:,} rows, {self.hbm_bytes:,} bytes"]
        return [*self._hot_lines(rows), *self._cold_lines(rows)]

    @property
    def _near(self) -> str:
        return "hbm" if self.staging.gpu else "hbm (plain memory, no GPU)"

    @property
    def _served(self) -> str:
        return "" if self.caught is None else f", {_share(self.caught)} of the counted look-ups"

    def _hot_lines(self, rows: int) -> Iterator[str]:
        hot = sum(len(own.hot_rows) for own in self.layers.values())
        staged = self.staging.hbm > 0
        if hot:
            yield (
                f"{self._near}: the {hot:,} hottest of {rows:,} rows "
                f"({_share(hot / rows)}{self._served}), "
                f"{self.hbm_bytes:,} bytes with their index{' and staging' * staged}"
            )
        elif self.hbm_bytes:
            yield f"{self._near}: no rows, {self.hbm_bytes:,} bytes of staging"

    def _shard_lines(self, rows: int, world: int) -> Iterator[str]:
        hot = sum(len(own.hot_rows) for own in self.layers.values())
        if self.cold != "none":
            yield (
                f"{self._near} of {world} GPUs: the {hot:,} hottest of {rows:,} rows"
                f"{self._served}, {self.hbm_bytes:,} bytes on each"
            )
            return
        copied = f", a copy of the {hot:,} hottest on each{self._served}" if hot else ""
        yield (
            f"{self._near} of {world} GPUs: all {rows:,} rows{copied}, "
            f"{self.hbm_bytes:,} bytes on each"
        )

    def _cold_lines(self, rows: int) -> Iterator[str]:
        if self.cold == "none":
            return
        if self.cold == "host":
            one = ", one copy for all processes" * self.shared
            yield f"host: all {rows:,} rows, {self.host_bytes:,} bytes{one}"
            return
        yield f"host: a cache of rows, {self.host_bytes:,} bytes at most"
        yield f"disk: all {rows:,} rows, {self.disk_bytes:,} bytes in the bundle's files"


def resolve(
    spec: BundleSpec,
    hits: Mapping[int, NDArray[np.uint32]] | None,
    wanted: Wanted,
    free: Free,
    *,
    staging: Staging | None = None,
    group: ShardGroup | None = None,
) -> Placement:
    """Decide where the rows of all layers lie. `hits`: uint32[rows] by layer, as the bundle has.

    With a `group`, bytes of HBM, free ones too, are those of each of its GPUs. Hot rows of all
    layers are chosen together, the most hit first, of equals the lower row number, then the earlier
    layer; rows without a hit are never hot. Raises InputError, with the bytes, for what does not
    fit in `free`, and for a hot set without hits to choose it by.
    """
    staging = staging or Staging()
    world = 1 if group is None else group.world
    every = spec.table_bytes if group is None else block_bytes(spec, world)
    index = sum(hot_set_bytes(spec.rows(layer)) for layer in spec.layers)
    cold: Cold = "none"
    if wanted.cold == "none" or (wanted.hbm or 0) >= every + (wanted.replicate or 0):
        staging = replace(staging, hbm=0, host=0)
    else:
        cold = _cold(spec, wanted, staging)
        staging = staging.of(cold)
    hot = Hottest(rows=dict.fromkeys(spec.layers, _NOTHING), caught=None)
    hbm_bytes = every if cold == "none" else staging.hbm
    size, budget, over, among = record_layout(spec).record_bytes, wanted.hbm, staging.hbm, world
    if cold == "none":
        size, budget, over, among = copy_bytes(spec, world), wanted.replicate, 0, 1
    elif wanted.replicate is not None:
        raise _no_copies(wanted, world, every)
    if budget is not None:
        hot = _choose(spec, hits, budget - index - over, budget, size=size, among=among)
        count = sum(map(len, hot.rows.values()))
        hbm_bytes += index + -(-count // among) * size
    host_bytes, caches = _on_host(spec, wanted, cold, staging)
    placement = Placement(
        spec=spec,
        layers={
            layer: LayerPlacement(
                layer=layer, hot_rows=hot.rows[layer], cold=cold, cache_bytes=caches[layer]
            )
            for layer in spec.layers
        },
        hbm_bytes=hbm_bytes,
        host_bytes=host_bytes,
        disk_bytes=spec.table_bytes if cold == "disk" else 0,
        staging=staging,
        caught=hot.caught,
        group=group,
        shared=cold == "host" and bool(wanted.shared),
    )
    _check_free(placement, free)
    return placement


_NOTHING: NDArray[np.int64] = np.empty(0, dtype=np.int64)


def _choose(
    spec: BundleSpec,
    hits: Mapping[int, NDArray[np.uint32]] | None,
    room: int,
    budget: int,
    *,
    size: int,
    among: int,
) -> Hottest:
    """Choose the hot rows of `size` bytes that fit in `room` bytes of HBM on each of so many."""
    if hits is None:
        raise InputError(
            f"a budget of {budget:,} bytes of HBM for rows of {spec.table_bytes:,}, and the bundle "
            "has no hits to choose the hot ones by",
            "attach it again with engram attach --stats (or build the table with --stats), or give "
            "placement=host",
        )
    if room < size:
        raise InputError(
            f"a budget of {budget:,} bytes of HBM holds no row: index and staging take "
            f"{budget - room:,}, a row {size:,}",
            f"give {min(budget - room + size, spec.table_bytes):,} or more, or leave the hot set "
            "out with placement=host",
        )
    return hottest({layer: hits[layer] for layer in spec.layers}, room // size * among)


def _cold(spec: BundleSpec, wanted: Wanted, staging: Staging) -> Cold:
    """Return the tier that holds all rows, where they are not all in HBM."""
    if wanted.cold is not None:
        return wanted.cold
    return "host" if (wanted.host or 0) >= _all_on_host(spec, staging) else "disk"


def _no_copies(wanted: Wanted, world: int, every: int) -> InputError:
    return InputError(
        f"{wanted.hbm or 0:,} bytes of each of {world} GPUs do not hold all rows, {every:,} "
        f"bytes on each, and the copies of {wanted.replicate:,}",
        "leave replicate out: the hottest rows are then distributed, and none is copied",
    )


def _on_host(
    spec: BundleSpec, wanted: Wanted, cold: Cold, staging: Staging
) -> tuple[int, dict[int, int]]:
    """Return the bytes of host memory, and each layer's cache bytes for its rows on disk."""
    if cold == "disk":
        caches = _caches(spec, wanted, staging)
        return staging.host + sum(caches.values()) + SCRATCH_BYTES, caches
    rows = _record_bytes(spec) if cold == "host" else 0
    return staging.host + rows, dict.fromkeys(spec.layers, 0)


def _caches(spec: BundleSpec, wanted: Wanted, staging: Staging) -> dict[int, int]:
    """Return each layer's cache bytes for its rows on disk. Raises InputError for too few."""
    total, over = DEFAULT_CACHE_BYTES, staging.host + SCRATCH_BYTES
    if wanted.host is not None:
        total = wanted.host - over
    rows = {layer: spec.rows(layer) for layer in spec.layers}
    size, all_rows = slot_bytes(record_layout(spec).record_bytes), sum(rows.values())
    caches = {layer: min(total * own // all_rows, own * size) for layer, own in rows.items()}
    if min(caches.values()) < min(LEAST_CACHE_BYTES, *(own * size for own in rows.values())):
        enough = over - (-LEAST_CACHE_BYTES * all_rows // min(rows.values()))
        if wanted.cold != "disk":  # then all rows on the host are allowed, too
            enough = min(enough, _all_on_host(spec, staging))
        raise InputError(
            f"{wanted.host or 0:,} bytes of host memory are too few for the caches of "
            f"{len(rows)} layers and {over:,} bytes of staging",
            f"give {enough:,} or more",
        )
    return caches


def _all_on_host(spec: BundleSpec, staging: Staging) -> int:
    return _record_bytes(spec) + staging.of("host").host


def _record_bytes(spec: BundleSpec) -> int:
    """Return the bytes of all layers' records."""
    size = record_layout(spec).record_bytes
    return sum(spec.rows(layer) for layer in spec.layers) * size


def _check_free(placement: Placement, free: Free) -> None:
    """Raises InputError where a tier has less free memory than the placement takes."""
    for name, needed, there, other in (
        ("HBM", placement.hbm_bytes, free.hbm, "a budget of HBM (hbm=SIZE) or placement=host"),
        ("host memory", placement.host_bytes, free.host, "a budget (host=SIZE) or placement=disk"),
    ):
        if needed > there:
            raise InputError(
                f"the rows need {needed:,} bytes of {name}, {there:,} are free: "
                f"{needed - there:,} too many",
                f"give {other}",
            )


def resolve_for(bundle: Bundle, placement: str, devices: Mapping[int, torch.device]) -> Placement:
    """Resolve `placement` for a bundle whose layers run on `devices`, by layer.

    Raises InputError where it cannot be parsed, or does not fit in free memory. With shard and
    several processes all of them call it, and all raise the error of any.
    """
    wanted, used = parse_placement(placement), set(devices.values())
    if wanted.shard is None:
        return _resolve_for(bundle, wanted, used, None)
    group = find_group(wanted.shard or None, used)
    with raise_together(group):
        return _resolve_for(bundle, wanted, used, group)


def _resolve_for(
    bundle: Bundle, wanted: Wanted, used: Collection[torch.device], group: ShardGroup | None
) -> Placement:
    spec = bundle.spec
    hits = {layer: bundle.hits(layer) for layer in spec.layers} if bundle.has_hits else None
    tuning = tuning_for(spec, used)
    staging = Staging(
        hbm=len(used) * tuning.device_bytes,
        host=len(used) * tuning.pinned_bytes,
        gpu=any(device.type != "cpu" for device in used),
    )
    if wanted == Wanted(cold="none") and all(device.type == "cpu" for device in used):
        # On a CPU a file of rows is mapped, and needs no memory of its own.
        _check_copied(bundle)
        unlimited = Free(hbm=spec.table_bytes, host=0)
        return resolve(spec, hits, wanted, unlimited, staging=staging)
    if wanted.shared is None:
        wanted = replace(wanted, shared=shares_by_default())
    rows = SharedHostRows.of_bundle(bundle, gpu=staging.gpu) if wanted.may_share else None
    host, held = free_host_bytes(), 0 if rows is None else rows.held_bytes()
    hbm = sum(free_device_bytes(device, host) for device in used)
    if group is not None:
        least = min(free_device_bytes(device, host) for device in group.devices)
        hbm = least // (1 if staging.gpu else group.world)
    free = Free(hbm=hbm, host=host + held)
    resolved = resolve(spec, hits, wanted, free, staging=staging, group=group)
    if rows is not None and resolved.shared:
        rows.check_room()
    return resolved


def _check_copied(bundle: Bundle) -> None:
    """Raise InputError where parts that are in several files, and become one tensor, do not fit."""
    copied = sum(
        bundle.spec.tensor(layer, part).nbytes
        for layer in bundle.spec.layers
        for part in bundle.spec.parts
        if len(bundle.spans(layer, part)) > 1
    )
    there = free_host_bytes() if copied else 0
    if copied > there:
        raise InputError(
            f"the rows are in several files and need {copied:,} bytes of host memory, {there:,} "
            f"are free: {copied - there:,} too many",
            "give placement=disk, which reads rows where they are",
        )


def tuning_for(spec: BundleSpec, devices: Collection[torch.device]) -> Tuning:
    """Return this machine's tuning, bounded for a memory on distinct `devices`."""
    rows = sum(spec.rows(layer) for layer in spec.layers)
    return local_tuning().within(rows, record_layout(spec).record_bytes, devices=len(devices))


def _share(value: float) -> str:
    """Return a share 0..1 in percent; a small one is not shown as nothing."""
    return "less than 0.1%" if 0.0 < value < 5e-4 else f"{value:.1%}"
