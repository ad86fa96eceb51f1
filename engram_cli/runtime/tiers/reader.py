"""Prefetches the rows of one forward call; each layer waits only for its own.

On the device the rows that are not hot are found and made distinct. They are staged in blocks, in
the order of the layers, as many at once as the budget of the `StagingQueue` allows. `take` returns
the vectors of a layer. Reads that are not taken must be dropped.
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
from engram_cli.runtime.tiers.records import RecordSource, TierBuffers, key_dtype
from engram_cli.runtime.tiers.staging import NUMBER_BYTES, Block, CudaEvent, StagingQueue, Tuning


class TieredRows(Protocol):
    """The rows of a layer in tiers, as a reader needs them: an `embedding.TieredEmbedding`."""

    cold: RecordSource
    device: torch.device
    staging_queue: StagingQueue
    tier_buffers: TierBuffers
    tuning: Tuning
    waited: float
    width: int

    def empty(self, rows: Tensor) -> Tensor:
        """Return memory for the vectors of rows [..., C]."""

    def reads_in_place(self, rows: Tensor) -> bool:
        """Whether these rows are read in place. Raises RuntimeAttachError where they must be."""

    def read_in_place(self, rows: Tensor, out: Tensor) -> None:
        """Write the vectors to `out` by a kernel on the current stream."""


@dataclass(slots=True, eq=False)
class _Piece:
    """Rows int64[n] of a layer that are staged together, and later their slots in the block."""

    store: TieredRows
    rows: Tensor
    slots: Tensor | None = None
    block: Block | None = None
    reserved: bool = False

    @property
    def nbytes(self) -> int:
        """Return the bytes of device memory of its records and their numbers."""
        return len(self.rows) * (self.store.cold.record_bytes + NUMBER_BYTES)

    def begin(self) -> None:
        """Find the distinct rows that are not hot, on a side stream, and queue their block.

        Nothing here waits for the device: only the worker learns how many rows there are.
        """
        store, device, count = self.store, self.store.device, len(self.rows)
        height, hot_set = store.cold.rows, store.tier_buffers.hot_set
        # Allocated on the current stream, where they are used and freed.
        self.slots = torch.empty(count, dtype=torch.int32, device=device)
        staging = torch.empty(count, store.cold.record_bytes, dtype=torch.uint8, device=device)
        host = torch.empty(count + 1, dtype=key_dtype(height), pin_memory=device.type == "cuda")
        with store.staging_queue.find.launch(after_current=True):
            keys, order = ops.cold_keys(self.rows, hot_set, height).sort()
            ops.find_slots(keys, order, height, self.slots, host, store.tier_buffers.counted)
            event = store.staging_queue.find.record()
        self.block = Block(source=store.cold, host=host, found=event, staging=staging)
        store.staging_queue.send(self.block)

    def deliver(self, out: Tensor) -> None:
        """Write the vectors to `out` [n, dim]; blocks until the worker has launched the copies."""
        store, block = self.store, self.block
        assert block is not None
        assert self.slots is not None
        begin = time.perf_counter()
        store.staging_queue.wait(block)
        store.waited += time.perf_counter() - begin
        block.copied.hold_back(store.device)
        staged = replace(store.tier_buffers, cold=block.staging)
        ops.read_tiers(staged, self.rows, self.slots, out)
        _lend(block.staging, self.slots, self.rows)
        self.block = self.slots = None


@dataclass(slots=True, eq=False)
class _Layer:
    """Holds a layer's vectors that are read in place, or its pieces that are staged."""

    rows: Tensor
    vectors: Tensor | None = None
    event: CudaEvent | None = None
    pieces: list[_Piece] = field(default_factory=list)


class TierReader:
    """Begins all reads of a call: rows int64[..., C] by the index of each tiered layer."""

    def __init__(self, stores: Mapping[int, TieredRows], rows: Sequence[Tensor] | Tensor) -> None:
        self.stores = stores
        self._process = os.getpid()
        self._layers: dict[int, _Layer] = {}
        self._waiting: deque[_Piece] = deque()
        self._expected: tuple[Tensor, Tensor, Callable[[bool], None]] | None = None
        self._start(rows)

    def expect(self, rows: Tensor, same: Tensor, tell: Callable[[bool], None]) -> None:
        """Read `rows` instead where `same`, one bool on the device, is False.

        `same` is read, and passed to `tell`, when the first layer takes its vectors.
        """
        self._expected = rows, same, tell

    def take(self, place: int) -> Tensor:
        """Return the vectors [..., C x dim] of a layer, once. Raises the error of its source."""
        self._keep_or_renew()
        layer, store = self._layers.pop(place), self.stores[place]
        if layer.vectors is not None and layer.event is not None:
            layer.event.hold_back(store.device)
            _lend(layer.vectors, layer.rows)
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
        """Start again where the rows that were prefetched are not those of the call."""
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
        """Drop the reads that were not taken; their memory is free when this returns."""
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
        # When Python exits, the worker has ended and there is nothing to wait for.
        if getattr(self, "_layers", None) and not sys.is_finalizing():
            self.drop()

    def __contains__(self, place: int) -> bool:
        """Whether a layer's vectors can be taken."""
        return place in self._layers

    def _begin(self, store: TieredRows, rows: Tensor) -> _Layer:
        """Read in place on a side stream, or prepare pieces of one block each."""
        if store.reads_in_place(rows):
            out = store.empty(rows)
            with store.staging_queue.find.launch(after_current=True):
                store.read_in_place(rows, out)
                return _Layer(rows, vectors=out, event=store.staging_queue.find.record())
        line = store.cold.record_bytes + NUMBER_BYTES
        step = max(1, store.tuning.block_bytes // line)
        flat = rows.reshape(-1).contiguous()
        pieces = [_Piece(store, flat[i : i + step]) for i in range(0, len(flat), step)]
        self._waiting.extend(pieces)
        return _Layer(rows, pieces=pieces)

    def _send(self) -> None:
        """Begin the waiting pieces that the budget allows, in order."""
        while self._waiting:
            piece = self._waiting[0]
            if not piece.store.staging_queue.reserve(piece.nbytes):
                return
            self._waiting.popleft()
            piece.reserved = True
            piece.begin()

    def _deliver(self, piece: _Piece, out: Tensor) -> None:
        staging_queue = piece.store.staging_queue
        if piece.block is None:
            self._send()
        if piece.block is None:
            # Other calls hold the budget and may wait for this one: allow one block over it.
            self._waiting.remove(piece)
            with staging_queue.alone:
                piece.begin()
                piece.deliver(out)
        else:
            piece.deliver(out)
        self._release(piece)
        self._send()

    def _drop(self, layer: _Layer) -> None:
        """Wait until no copy writes for a layer any more, and release its budget."""
        if layer.event is not None and layer.vectors is not None:
            layer.event.hold_back(layer.vectors.device)
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
            piece.store.staging_queue.release(piece.nbytes)


def _lend(*tensors: Tensor) -> None:
    """Tell torch that the current stream uses memory that another stream may have allocated."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
