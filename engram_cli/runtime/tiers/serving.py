"""The tiers of a memory: all its layers' reads begin together, ahead of the call if told so.

In: row numbers of all layers. Out: `Reads`, and counters. What was asked for ahead serves the next
call if its rows are the same, and is dropped if not.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engram_cli.runtime.tiers.forks import renew_in_children
from engram_cli.runtime.tiers.reads import Reads
from engram_cli.runtime.tiers.store import TieredRows
from engram_cli.runtime.tiers.streams import is_captured


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Sums since a memory was attached, over its layers.

    Rows asked for, each as often as asked: `hot` in HBM, `in_place` read from pinned host memory by
    the GPU, `staged` the rest, of which `travelled` were distinct in their block and took `bytes`.
    Of these `cached` were in the row cache over the disk. Seconds: `waited` by callers at their
    layers; of the worker `finding` (for row numbers), `gathering`, `copying` (for a free buffer).
    Calls whose rows were asked for ahead: `ahead_used`, and `ahead_dropped` for others' rows.
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
    """The stores of a memory's layers, by the layer's place in it."""

    def __init__(self, stores: Mapping[int, TieredRows]) -> None:
        self.stores = dict(stores)
        self._used = self._dropped = 0
        self.after_fork()
        renew_in_children(self)

    def after_fork(self) -> None:
        """Nothing is asked for ahead, and no lock is held; so also in a child process."""
        self._lock = threading.Lock()
        self._ahead: tuple[Tensor, Reads] | None = None

    def start(self, rows: Tensor) -> Reads:
        """Ask for the rows int64[L, ..., C] of a call, unless that was done ahead."""
        if any(is_captured(store.device) for store in self.stores.values()):
            return Reads(self.stores, rows)
        ahead = self._exchange(None)
        if ahead is None:
            return Reads(self.stores, rows)
        known, reads = ahead
        if known.shape != rows.shape or known.device != rows.device:
            reads.drop()
            self._dropped += 1
            return Reads(self.stores, rows)
        reads.expect(rows, (known == rows).all(), self._tell)
        return reads

    def prefetch(self, rows: Tensor) -> None:
        """Ask for rows that the next call is expected to need; those asked for before are dropped.

        They take of the memory that is for rows on their way until that call.
        """
        earlier = self._exchange(None)
        if earlier is not None:
            earlier[1].drop()
            self._dropped += 1
        self._exchange((rows, Reads(self.stores, rows)))

    def counters(self) -> Counters:
        """The sums; waits for the devices."""
        asked = torch.stack([store.shelves.counted.cpu() for store in self.stores.values()])
        below = [store.cold.counters() for store in self.stores.values()]
        roads = {id(store.road): store.road.travelled for store in self.stores.values()}.values()
        (staged, staged_hot), (in_place, in_place_hot) = asked.sum(0).tolist()
        return Counters(
            hot=staged_hot + in_place_hot,
            staged=staged - staged_hot,
            in_place=in_place - in_place_hot,
            travelled=sum(road.rows for road in roads),
            bytes=sum(road.bytes for road in roads),
            cached=sum(int(source["hits"]) for source in below),
            waited=sum(store.waited for store in self.stores.values()),
            finding=sum(road.seconds_found for road in roads),
            gathering=sum(road.seconds_gathered for road in roads),
            copying=sum(road.seconds_copies for road in roads),
            ahead_used=self._used,
            ahead_dropped=self._dropped,
        )

    def close(self) -> None:
        """Let go of the rows, their memory and threads."""
        ahead = self._exchange(None)
        if ahead is not None:
            ahead[1].drop()
        for store in self.stores.values():
            store.close()

    def _exchange(self, ahead: tuple[Tensor, Reads] | None) -> tuple[Tensor, Reads] | None:
        with self._lock:
            self._ahead, earlier = ahead, self._ahead
        return earlier

    def _tell(self, same: bool) -> None:
        if same:
            self._used += 1
        else:
            self._dropped += 1
