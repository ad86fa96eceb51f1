"""A layer's table in tiers, as the module that the model calls.

Given row numbers it returns their vectors: hot rows from device memory, other rows from the source
below. These are read in place where the source is pinned host memory and they are few, and staged
otherwise (`reader`). For torch.compile the look-up is one operator (`operator`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import SCALES, BundleSpec
from engram_cli.runtime import ops
from engram_cli.runtime.sharding.group import wait_for_all
from engram_cli.runtime.sharding.hot import HotBlocks, HotMemory
from engram_cli.runtime.tables import FLOATS
from engram_cli.runtime.tiers import renew_in_children, with_index
from engram_cli.runtime.tiers.disk import DiskRows
from engram_cli.runtime.tiers.host import HostRows
from engram_cli.runtime.tiers.hot_set import hot_set
from engram_cli.runtime.tiers.operator import OperatorRows, register
from engram_cli.runtime.tiers.placement import Placement, tuning_for
from engram_cli.runtime.tiers.reader import TierReader
from engram_cli.runtime.tiers.records import RecordSource, TierBuffers, record_form, record_layout
from engram_cli.runtime.tiers.staging import StagingQueue, Tuning, local_tuning

Path = Literal["in-place", "staged"]
_PIECE_ROWS = 2**16  # hot rows fetched at once
_EVERY = 64  # calls between two looks at how many rows were hot


class TieredEmbedding(OperatorRows):
    """Holds a layer's frozen rows, in place of `Rows` or `StoredRows`.

    They are neither parameters nor buffers: they stay where they were placed when the model is
    moved, and are in no state dict. `path` forces a way of reading, for measuring; None chooses by
    size.
    """

    def __init__(
        self,
        spec: BundleSpec,
        cold: RecordSource,
        *,
        device: torch.device | str,
        hot_rows: NDArray[np.int64] | None = None,
        layer_scale: Tensor | None = None,
        dtype: torch.dtype | None = None,
        staging_queue: StagingQueue | None = None,
        tuning: Tuning | None = None,
        origin: tuple[Bundle, int] | None = None,
        peers: HotBlocks | None = None,
    ) -> None:
        """`cold` has every row; `hot_rows` int64, ascending, are copied to `device`.

        With `peers` they are there already, distributed over several GPUs.
        Quantised rows are dequantised to `dtype`, float32 when None. `layer_scale`: one float32,
        for row types with one scale a layer. `origin`: the bundle and the layer of the rows.
        """
        super().__init__()
        self.spec, self.cold = spec, cold
        self.device = with_index(torch.device(device))
        self.staging_queue = staging_queue or StagingQueue(self.device, tuning or local_tuning())
        self.tuning = tuning or self.staging_queue.tuning
        self.path: Path | None = None
        self.origin = origin
        self.holders = 1
        self.waited = 0.0  # seconds that callers waited for the copies
        self.form = record_form(spec, layer_scale, self.device)
        hot = None if hot_rows is None or not len(hot_rows) else hot_rows
        self._nothing = torch.empty(0, record_layout(spec).record_bytes, dtype=torch.uint8)
        self.tier_buffers = TierBuffers(
            form=self.form,
            cold=cold.records if isinstance(cold, HostRows) else self._nothing,
            counted=torch.zeros(2, 2, dtype=torch.int64, device=self.device),
            hot=None if hot is None else self._hot(hot, peers),
            hot_set=None if hot is None else hot_set(hot, cold.rows, self.device),
            peers=peers,
        )
        self.width = self.form.width
        self.dtype = self.form.items if self.form.kind == "plain" else dtype or torch.float32
        self._can_read_host = isinstance(cold, HostRows) and (
            self.device.type == "cpu"
            or (ops.has_kernels(self.device) and self.tier_buffers.cold.is_pinned())
        )
        self.number = register(self)
        self._cold_share = ColdShare(self.tier_buffers.counted) if hot is not None else None

    def _hot(self, hot_rows: NDArray[np.int64], peers: HotBlocks | None) -> Tensor:
        if peers is not None:
            return peers.blocks[max(0, peers.rank)]
        return fetch(self.cold, hot_rows, self.device)

    def vectors(self, rows: Tensor) -> Tensor:
        """Return what `forward` does. Raises RuntimeAttachError, and the source's errors."""
        if not self.reads_in_place(rows):
            return TierReader({0: self}, [rows]).take(0)
        out = self.empty(rows)
        self.read_in_place(rows, out)
        return out

    def read_in_place(self, rows: Tensor, out: Tensor) -> None:
        """Write the vectors to `out` by a kernel on the current stream, which reads cold rows."""
        flat = out.view(-1, self.width)
        ops.read_tiers(self.tier_buffers, rows.reshape(-1).contiguous(), None, flat)

    def empty(self, rows: Tensor) -> Tensor:
        """Return memory for the vectors of rows [..., C]."""
        shape = (*rows.shape[:-1], rows.shape[-1] * self.width)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def reads_in_place(self, rows: Tensor) -> bool:
        """Whether these rows are read in place. Raises RuntimeAttachError where they must be, and
        after `close`.
        """
        if not self.holders:
            raise RuntimeAttachError("the memory was detached", "attach it again")
        captured, can = _is_captured(self.device), self._can_read_host
        if captured and not can:
            raise RuntimeAttachError(
                "rows below host memory cannot be read inside a CUDA graph",
                "attach with placement='host' or 'hbm', or run without CUDA graphs",
            )
        if captured or not can:
            return can
        if self.path is not None:
            return self.path == "in-place"
        return self.device.type == "cpu" or self._is_few(rows.numel())

    def _is_few(self, count: int) -> bool:
        """Whether so many rows bring few bytes over the bus: hot ones bring none."""
        cold = count if self._cold_share is None else count * self._cold_share.expected()
        return cold * self.cold.record_bytes <= self.tuning.in_place_bytes

    def close(self) -> None:
        """Free the rows when no copy of the model uses them any more."""
        self.holders -= 1
        if self.holders == 0:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.tier_buffers = replace(
                self.tier_buffers, cold=self._nothing, hot=None, hot_set=None, peers=None
            )
            self.staging_queue.close()
            self.cold.close()

    def __deepcopy__(self, memo: object) -> TieredEmbedding:
        """Return the module itself: copies of a model share frozen rows."""
        self.holders += 1
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        raise RuntimeAttachError(
            "rows in tiers cannot be pickled", "save_engram(model, folder) writes a bundle"
        )

    def extra_repr(self) -> str:
        """Return what `print` shows of the module."""
        hot = 0 if self.tier_buffers.hot is None else len(self.tier_buffers.hot)
        below = type(self.cold).__name__
        return f"{self.cold.rows}, {self.width}, {self.spec.dtype}, {hot} in hbm, {below} below"


class ColdShare:
    """The share of rows that were not hot, of the calls so far; nothing waits for the device.

    `counted` is `TierBuffers.counted`. It is copied to the host now and then, and what has arrived
    is used. Only the way of reading depends on it, and no vector does.
    """

    def __init__(self, counted: Tensor) -> None:
        self._counted = counted
        self._arrived = torch.zeros(
            counted.shape, dtype=counted.dtype, pin_memory=counted.device.type == "cuda"
        )
        self._calls = 0

    def expected(self) -> float:
        """Return the share of the next call: 1 before the first has been counted."""
        (staged, staged_hot), (in_place, in_place_hot) = self._arrived.tolist()
        asked, hot = staged + in_place, staged_hot + in_place_hot
        # Call 1, 2, 4, 8 and so on, then each of _EVERY: a copy is one more launch.
        if self._calls & (self._calls - 1) == 0 or self._calls % _EVERY == 0:
            self._arrived.copy_(self._counted, non_blocking=True)
        self._calls += 1
        return min(1.0, max(0.0, 1 - hot / asked)) if asked else 1.0


def fetch(cold: RecordSource, hot: NDArray[np.int64], device: torch.device) -> Tensor:
    """Read the records of hot rows in pieces: uint8[H, record_bytes] on the device."""
    found = torch.empty(len(hot), cold.record_bytes, dtype=torch.uint8, device=device)
    for begin in range(0, len(hot), _PIECE_ROWS):
        rows = torch.from_numpy(np.ascontiguousarray(hot[begin : begin + _PIECE_ROWS]))
        piece = torch.empty(len(rows), cold.record_bytes, dtype=torch.uint8)
        cold.gather(rows, piece)
        found[begin : begin + len(rows)].copy_(piece)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Totals since a memory was attached, over its layers.

    Rows asked for, by where they were: `local` on the GPU that asked, `peer` on another GPU, `host`
    in host memory, `disk` in files, with those in the row cache. Each counts as often as asked.

    The same rows by how tiers brought them: `hot` in HBM, `in_place` read from pinned host memory
    by the GPU, `staged` the rest, of which `travelled` were distinct in their block and took
    `bytes`.
    Of these `cached` were in the row cache over the disk. Seconds: `waited` by callers at their
    layers; of the worker `finding` (for row numbers), `gathering`, `copying` (for a free buffer).
    Prefetched calls: `ahead_used`, and `ahead_dropped` where the next call needed other rows.
    """

    local: int = 0
    peer: int = 0
    host: int = 0
    disk: int = 0
    hot: int = 0
    in_place: int = 0
    staged: int = 0
    travelled: int = 0
    bytes: int = 0
    cached: int = 0
    waited: float = 0.0
    finding: float = 0.0
    gathering: float = 0.0
    copying: float = 0.0
    ahead_used: int = 0
    ahead_dropped: int = 0


class Tiers:
    """Reads, prefetches and counts the tiered layers of a memory, by their index in it.

    Rows that were prefetched serve the next call if it needs the same rows, and are dropped if not.
    """

    def __init__(self, stores: Mapping[int, TieredEmbedding]) -> None:
        self.stores = dict(stores)
        self._used = self._dropped = 0
        self.after_fork()
        renew_in_children(self)

    def after_fork(self) -> None:
        """Start without prefetched rows and with a new lock, also in a child process."""
        self._lock = threading.Lock()
        self._ahead: tuple[Tensor, TierReader] | None = None

    def start(self, rows: Tensor) -> TierReader:
        """Start reading the rows int64[L, ..., C] of a call, unless they were prefetched."""
        captured = any(_is_captured(store.device) for store in self.stores.values())
        ahead = None if captured else self._exchange(None)
        if ahead is None:
            return TierReader(self.stores, rows)
        known, reads = ahead
        if known.shape != rows.shape or known.device != rows.device:
            reads.drop()
            self._dropped += 1
            return TierReader(self.stores, rows)
        reads.expect(rows, (known == rows).all(), self._count)
        return reads

    def prefetch(self, rows: Tensor) -> None:
        """Start reading rows for the next call; rows that were prefetched before are dropped.

        They use the memory for staged rows until that call.
        """
        earlier = self._exchange(None)
        if earlier is not None:
            earlier[1].drop()
            self._dropped += 1
        self._exchange((rows, TierReader(self.stores, rows)))

    def counters(self) -> Counters:
        """Return the totals; waits for the devices."""
        stores = self.stores.values()
        asked = torch.stack([store.tier_buffers.counted.cpu() for store in stores]).sum(0)
        (staged, staged_hot), (in_place, in_place_hot) = asked.tolist()
        transfers = {id(own): own for own in (store.staging_queue.transfers for store in stores)}

        def total(name: str) -> Any:
            return sum(getattr(own, name) for own in transfers.values())

        on_disk = any(isinstance(store.cold, DiskRows) for store in stores)
        below = staged - staged_hot + in_place - in_place_hot
        peers = [own for store in stores if (own := store.tier_buffers.peers) is not None]
        hot = staged_hot + in_place_hot
        here = sum(int(own.here) for own in peers) if peers else hot
        return Counters(
            local=here,
            peer=hot - here,
            host=0 if on_disk else below,
            disk=below if on_disk else 0,
            hot=hot,
            staged=staged - staged_hot,
            in_place=in_place - in_place_hot,
            travelled=total("rows"),
            bytes=total("bytes"),
            cached=sum(int(store.cold.counters()["hits"]) for store in stores),
            waited=sum(store.waited for store in stores),
            finding=total("finding"),
            gathering=total("gathering"),
            copying=total("copying"),
            ahead_used=self._used,
            ahead_dropped=self._dropped,
        )

    def close(self) -> None:
        """Free the rows and their memory, and end their threads."""
        ahead = self._exchange(None)
        if ahead is not None:
            ahead[1].drop()
        for store in self.stores.values():
            store.close()

    def _exchange(
        self, ahead: tuple[Tensor, TierReader] | None
    ) -> tuple[Tensor, TierReader] | None:
        with self._lock:
            self._ahead, earlier = ahead, self._ahead
        return earlier

    def _count(self, same: bool) -> None:
        self._used += same
        self._dropped += not same


def stores_of(
    bundle: Bundle,
    placement: Placement,
    homes: Mapping[int, tuple[torch.dtype, torch.device]],
) -> dict[int, TieredEmbedding]:
    """Make each layer's rows as placed; `homes`: dtype and device of its dense weights."""
    tuning = tuning_for(bundle.spec, {device for _, device in homes.values()})
    staging_queues: dict[torch.device, StagingQueue] = {}
    distributed = None
    if placement.group is not None:
        counts = {layer: len(own.hot_rows) for layer, own in placement.layers.items()}
        size = record_layout(bundle.spec).record_bytes
        distributed = HotMemory(placement.group, counts, size)
    stores = {}
    for layer, placed in placement.layers.items():
        dtype, device = homes[layer]
        if device not in staging_queues:
            staging_queues[device] = StagingQueue(device, tuning)
        cold: RecordSource
        if placed.cold == "host":
            cold = HostRows.of_bundle(
                bundle, layer, pinned=device.type == "cuda", shared=placement.shared
            )
        else:
            cold = DiskRows(bundle, layer, cache_bytes=placed.cache_bytes)
        scale = None
        if bundle.spec.row_type.of_layer:
            scale = torch.from_numpy(np.array(bundle.maps(layer, SCALES)[0], dtype=np.float32))
        if distributed is not None:
            world = distributed.group.world
            for rank in distributed.group.ranks:
                own = placed.hot_rows[rank::world]
                block = distributed.own(layer, rank)[: len(own)]
                block.copy_(fetch(cold, own, block.device))
        stores[layer] = TieredEmbedding(
            bundle.spec,
            cold,
            device=device,
            hot_rows=placed.hot_rows,
            layer_scale=scale,
            dtype=dtype if dtype in FLOATS else torch.float32,
            staging_queue=staging_queues[device],
            origin=(bundle, layer),
            peers=None if distributed is None else distributed.of(layer, with_index(device)),
        )
    if placement.group is not None:
        wait_for_all(placement.group)
    return stores


def _is_captured(device: torch.device) -> bool:
    """Whether the current stream of `device` is being captured into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
