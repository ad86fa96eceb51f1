"""The rows of one forward call, asked for when it starts and taken where a layer needs them.

In: row numbers of each layer. On the device the rows that are not hot are found and made distinct;
blocks of them travel by the road in the order of the layers, as many at once as its budget lets.
Out: a layer's vectors. Whatever is not taken must be dropped.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from engram_cli.runtime import ops
from engram_cli.runtime.tiers.reading import Shelves, key_dtype
from engram_cli.runtime.tiers.ring import Block, Road
from engram_cli.runtime.tiers.source import RowSource
from engram_cli.runtime.tiers.streams import Mark, lend
from engram_cli.runtime.tiers.tuning import NUMBER_BYTES, Tuning


class Store(Protocol):
    """A layer's rows as they are read here (`store.TieredRows`)."""

    device: torch.device
    cold: RowSource
    road: Road
    shelves: Shelves
    tuning: Tuning
    width: int
    waited: float

    def empty(self, rows: Tensor) -> Tensor:
        """Memory for the vectors of rows [..., C]."""
        ...

    def reads_in_place(self, rows: Tensor) -> bool:
        """Whether these rows are read in place."""
        ...


@dataclass(slots=True, eq=False)
class _Piece:
    """Some rows int64[n] of a layer, and once begun their slots in the block's staging."""

    store: Store
    rows: Tensor
    slots: Tensor | None = None
    block: Block | None = None
    reserved: bool = False

    @property
    def nbytes(self) -> int:
        """The device memory of its records and its numbers."""
        return len(self.rows) * (self.store.cold.record_bytes + NUMBER_BYTES)

    def begin(self) -> None:
        """Find the distinct rows that are not hot, beside the current stream, and send for them.

        Nothing here waits for the device: how many rows there are is known to the worker alone.
        """
        store, device, count = self.store, self.store.device, len(self.rows)
        height, hot_set = store.cold.rows, store.shelves.hot_set
        # Made on the current stream, where they are used and given back.
        self.slots = torch.empty(count, dtype=torch.int32, device=device)
        staging = torch.empty(count, store.cold.record_bytes, dtype=torch.uint8, device=device)
        host = torch.empty(count + 1, dtype=key_dtype(height), pin_memory=device.type == "cuda")
        with store.road.find.after_current():
            keys, order = ops.cold_keys(self.rows, hot_set, height).sort()
            ops.find_slots(keys, order, height, self.slots, host, store.shelves.counted)
            mark = store.road.find.mark()
        self.block = Block(source=store.cold, host=host, found=mark, staging=staging)
        store.road.send(self.block)

    def deliver(self, out: Tensor) -> None:
        """Write the vectors to `out` [n, dim]; blocks until the worker has launched the copies."""
        store, block = self.store, self.block
        assert block is not None
        assert self.slots is not None
        begin = time.perf_counter()
        store.road.wait(block)
        store.waited += time.perf_counter() - begin
        block.copied.hold_back(store.device)
        staged = replace(store.shelves, cold=block.staging)
        ops.read_tiers(staged, self.rows, self.slots, out)
        lend(block.staging, self.slots, self.rows)
        self.block = self.slots = None


@dataclass(slots=True, eq=False)
class _Layer:
    """What a layer asked for: its vectors on their way in place, or pieces that are staged."""

    rows: Tensor
    vectors: Tensor | None = None
    mark: Mark | None = None
    pieces: list[_Piece] = field(default_factory=list)


class Reads:
    """The reads of a call, begun at once: rows int64[..., C] of each place that has a store."""

    def __init__(self, stores: Mapping[int, Store], rows: Sequence[Tensor] | Tensor) -> None:
        self.stores = stores
        self._process = os.getpid()
        self._layers: dict[int, _Layer] = {}
        self._waiting: deque[_Piece] = deque()
        self._expected: tuple[Tensor, Tensor, Callable[[bool], None]] | None = None
        self._start(rows)

    def expect(self, rows: Tensor, same: Tensor, tell: Callable[[bool], None]) -> None:
        """Where `same`, one bool on the device, is False, `rows` are meant instead.

        It is read, and told, when the first layer takes its vectors: nothing waits for it before.
        """
        self._expected = rows, same, tell

    def take(self, place: int) -> Tensor:
        """[..., C x dim]: the vectors of a layer, once. Raises what its source raised."""
        self._keep_or_renew()
        layer, store = self._layers.pop(place), self.stores[place]
        if layer.vectors is not None and layer.mark is not None:
            layer.mark.hold_back(store.device)
            lend(layer.vectors, layer.rows)
            return layer.vectors
        out = store.empty(layer.rows)
        flat, begin = out.view(-1, store.width), 0
        try:
            for piece in layer.pieces:
                end = begin + len(piece.rows)
                self._deliver(piece, flat[begin:end])
                begin = end
        except BaseException:
            self._drop(layer)
            raise
        return out

    def _keep_or_renew(self) -> None:
        """Begin anew where rows were asked for ahead that are not those of the call."""
        if self._expected is None:
            return
        (rows, same, tell), self._expected = self._expected, None
        kept = bool(same)
        tell(kept)
        if not kept:
            self.drop()
            self._start(rows)

    def _start(self, rows: Sequence[Tensor] | Tensor) -> None:
        try:
            for place, store in self.stores.items():
                self._layers[place] = self._begin(store, rows[place].to(store.device))
            self._send()
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Forget what was not taken; its memory is free when this returns."""
        layers, self._layers = list(self._layers.values()), {}
        self._waiting.clear()
        if os.getpid() != self._process:  # the threads that write are the parent's
            return
        for layer in layers:
            for piece in layer.pieces:
                if piece.block is not None:
                    piece.block.drop()
        for layer in layers:
            self._drop(layer)

    def __del__(self) -> None:
        # When Python ends the worker has ended, and there is nothing to wait for.
        if getattr(self, "_layers", None) and not sys.is_finalizing():
            self.drop()

    def __contains__(self, place: int) -> bool:
        """Whether a layer's vectors are there to be taken."""
        return place in self._layers

    def _begin(self, store: Store, rows: Tensor) -> _Layer:
        """In place beside the current stream, or in pieces of a block each."""
        if store.reads_in_place(rows):
            out = store.empty(rows)
            with store.road.find.after_current():
                ops.read_tiers(
                    store.shelves, rows.reshape(-1).contiguous(), None, out.view(-1, store.width)
                )
                return _Layer(rows, vectors=out, mark=store.road.find.mark())
        line = store.cold.record_bytes + NUMBER_BYTES
        step = max(1, store.tuning.block_bytes // line)
        flat = rows.reshape(-1).contiguous()
        pieces = [_Piece(store, flat[i : i + step]) for i in range(0, len(flat), step)]
        self._waiting.extend(pieces)
        return _Layer(rows, pieces=pieces)

    def _send(self) -> None:
        """Begin what the budget lets, in order."""
        while self._waiting:
            piece = self._waiting[0]
            if not piece.store.road.reserve(piece.nbytes):
                return
            self._waiting.popleft()
            piece.reserved = True
            piece.begin()

    def _deliver(self, piece: _Piece, out: Tensor) -> None:
        road = piece.store.road
        if piece.block is None:
            self._send()
        if piece.block is None:
            # Others have the budget, and may wait for us: one block more for one caller at a time.
            self._waiting.remove(piece)
            with road.alone:
                piece.begin()
                piece.deliver(out)
        else:
            piece.deliver(out)
        self._release(piece)
        self._send()

    def _drop(self, layer: _Layer) -> None:
        """Wait until nothing writes for a layer any more, and give back its budget."""
        if layer.mark is not None and layer.vectors is not None:
            layer.mark.hold_back(layer.vectors.device)
        for piece in layer.pieces:
            if piece in self._waiting:
                self._waiting.remove(piece)
            if piece.block is not None:
                piece.block.drop()
                piece.block.wait()
                piece.block.found.hold_back(piece.store.device)
                piece.block.copied.hold_back(piece.store.device)
                piece.block = piece.slots = None
            self._release(piece)

    @staticmethod
    def _release(piece: _Piece) -> None:
        if piece.reserved:
            piece.reserved = False
            piece.store.road.release(piece.nbytes)
