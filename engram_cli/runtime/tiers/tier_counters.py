"""The reads of all tiered layers of a memory: started together, prefetched, and counted.

Rows that were prefetched serve the next call if it needs the same rows, and are dropped if not.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engram_cli.runtime.tiers.protocol import renew_in_children
from engram_cli.runtime.tiers.streams import is_captured
from engram_cli.runtime.tiers.tier_reader import TierReader
from engram_cli.runtime.tiers.tiered_embedding import TieredEmbedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Totals since a memory was attached, over its layers.

    Rows asked for, each as often as asked: `hot` in HBM, `in_place` read from pinned host memory by
    the GPU, `staged` the rest, of which `travelled` were distinct in their block and took `bytes`.
    Of these `cached` were in the row cache over the disk. Seconds: `waited` by callers at their
    layers; of the worker `finding` (for row numbers), `gathering`, `copying` (for a free buffer).
    Prefetched calls: `ahead_used`, and `ahead_dropped` where the next call needed other rows.
    """

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
    """The tiered layers of a memory, by their index in it."""

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
        if any(is_captured(store.device) for store in self.stores.values()):
            return TierReader(self.stores, rows)
        ahead = self._exchange(None)
        if ahead is None:
            return TierReader(self.stores, rows)
        known, reads = ahead
        if known.shape != rows.shape or known.device != rows.device:
            reads.drop()
            self._dropped += 1
            return TierReader(self.stores, rows)
        reads.expect(rows, (known == rows).all(), self._tell)
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
        asked = torch.stack([store.tier_buffers.counted.cpu() for store in self.stores.values()])
        below = [store.cold.counters() for store in self.stores.values()]
        staging_queues = {
            id(store.staging_queue): store.staging_queue.travelled for store in self.stores.values()
        }.values()
        (staged, staged_hot), (in_place, in_place_hot) = asked.sum(0).tolist()
        return Counters(
            hot=staged_hot + in_place_hot,
            staged=staged - staged_hot,
            in_place=in_place - in_place_hot,
            travelled=sum(staging_queue.rows for staging_queue in staging_queues),
            bytes=sum(staging_queue.bytes for staging_queue in staging_queues),
            cached=sum(int(source["hits"]) for source in below),
            waited=sum(store.waited for store in self.stores.values()),
            finding=sum(staging_queue.seconds_found for staging_queue in staging_queues),
            gathering=sum(staging_queue.seconds_gathered for staging_queue in staging_queues),
            copying=sum(staging_queue.seconds_copies for staging_queue in staging_queues),
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

    def _tell(self, same: bool) -> None:
        if same:
            self._used += 1
        else:
            self._dropped += 1
