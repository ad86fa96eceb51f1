"""One process of gpu_shard.py: its GPU, its rows, filled with a pattern, and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gpu_world as world
import torch
import torch.distributed as dist
from torch import Tensor

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime import lookup_reference
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.reference import HashTensors
from engram_cli.runtime.sharding.group import find_group
from engram_cli.runtime.sharding.rows import ShardedTables
from engram_cli.runtime.tables import Table, dequantise

RANKS = 2
DIM, SCALES = 256, 8
WORDS = DIM // 8
PIECE_ROWS = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The sizes of a run."""

    rows_per_head: int | None = None  # of V4.1
    host_rows: int = 16_000_000  # 4.2 GB a process
    tokens: tuple[int, ...] = (1, 64, 512, 4096, 16384)
    copy_bytes: int = 2**30
    rounds: int = 9


TINY = Run(rows_per_head=1000, host_rows=20_000, tokens=(1, 3), copy_bytes=2**12, rounds=2)


def mixed(counter: Tensor) -> Tensor:
    """Return int64 that look random, of counters int64: splitmix64."""

    def shifted(value: Tensor, bits: int) -> Tensor:
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    value = counter * -7046029254386353131
    value = (value ^ shifted(value, 30)) * -4658895280553007687
    value = (value ^ shifted(value, 27)) * -7723592293110705685
    return value ^ shifted(value, 31)


def values_of(rows: Tensor, layer: int) -> Tensor:
    """Return the e4m3 bytes uint8[n, 256] of rows int64[n] of a layer."""
    first = (rows[:, None] + layer * 2**33) * (WORDS + 1)
    words = mixed(first + torch.arange(WORDS, device=rows.device)) & 0x7EFEFEFEFEFEFEFE
    return words.view(torch.uint8)


def scales_of(rows: Tensor, layer: int) -> Tensor:
    """Return the e8m0 bytes uint8[n, 8] of rows int64[n] of a layer."""
    words = mixed((rows[:, None] + layer * 2**33) * (WORDS + 1) + WORDS)
    return ((words & 0x0F0F0F0F0F0F0F0F) + 0x7676767676767676).view(torch.uint8)


class Rank:
    """One of the processes: its GPU, its rows and what it measures."""

    def __init__(self, rank: int, run: Run, layers: tuple[int, ...]) -> None:
        self.rank, self.run, self.layers = rank, run, layers
        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
        sizes = {} if run.rows_per_head is None else {"rows_per_head": run.rows_per_head}
        self.layout = world.published_layout("deepseek-v4.1", **sizes)
        self.spec, self.hashed = self.of(self.layout, layers)
        self.group = find_group(RANKS, [self.device])

    def of(self, layout: Any, layers: tuple[int, ...]) -> tuple[BundleSpec, HashTensors]:
        """Return the spec and the hash of layers of a layout."""
        spec = BundleSpec(
            layout=layout,
            layers=layers,
            dim=DIM,
            dtype="fp8_e8m0",
            hidden_size=8,
            num_layers=64,
            model_type="",
        )
        return spec, hash_tensors(layout, layers, device=self.device)

    def tables(self, *, scales_here: bool | None = None) -> ShardedTables:
        """Return distributed rows, filled with the pattern."""
        made = ShardedTables(
            self.spec,
            self.group,
            [self.device],
            dtype=torch.bfloat16,
            scales_here=scales_here,
        )
        alone = len(made.blocks.widths) == 1
        scales = []
        for place, layer in enumerate(self.layers):
            own = made.held(self.rank, place, 0)
            for begin in range(0, len(own), PIECE_ROWS):
                index = torch.arange(begin, min(begin + PIECE_ROWS, len(own)), device=self.device)
                rows = index * RANKS + self.rank
                own[begin : begin + len(index)] = values_of(rows, layer)
                if not alone:
                    its_scales = made.held(self.rank, place, 1)
                    its_scales[begin : begin + len(index)] = scales_of(rows, layer)
            if alone:
                height = made.blocks.heights[place]
                every = torch.empty(height, SCALES, dtype=torch.uint8, device=self.device)
                for begin in range(0, height, 32 * PIECE_ROWS):
                    end = min(begin + 32 * PIECE_ROWS, height)
                    rows = torch.arange(begin, end, device=self.device)
                    every[begin:end] = scales_of(rows, layer)
                scales.append(every)
        if alone:
            copies = made.copies[self.device]
            made.copies[self.device] = replace(copies, scales=tuple(scales))
        self.wait()
        return made

    def expected(self, ids: Tensor) -> Tensor:
        """Return the vectors of ids as the plain version and the pattern give them."""
        found = []
        rows = lookup_reference.find_rows(self.hashed, ids)
        for layer, own in zip(self.layers, rows, strict=True):
            flat = own.reshape(-1)
            table = Table(values=values_of(flat, layer), scales=scales_of(flat, layer))
            every = torch.arange(own.numel(), device=self.device)
            vectors = dequantise(table, every, torch.bfloat16)
            found.append(vectors.view(*own.shape[:-1], -1))
        return torch.stack(found)

    def ids(self, count: int, sets: int) -> list[Tensor]:
        """Return sets of uniformly random token ids int32[1, count], others on each rank."""
        generator = torch.Generator(device=self.device).manual_seed(2 * count + self.rank)
        high = len(self.hashed.lookup)
        return [
            torch.randint(
                0, high, (1, count), device=self.device, dtype=torch.int32, generator=generator
            )
            for _ in range(sets)
        ]

    def wait(self) -> None:
        """Wait for the device and then for the other ranks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()

    def graph(self, calls: Sequence[Callable[[], Any]]) -> Callable[[], float]:
        """Return what replays a graph of calls and gives the microseconds of each."""
        if self.device.type != "cuda":
            return self.eager(calls)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls[:3]:
                call()
        torch.cuda.current_stream().wait_stream(side)
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for i in range(world.LAUNCHES):
                calls[i % len(calls)]()
        return lambda: self._timed(graph.replay, world.LAUNCHES)

    def eager(self, calls: Sequence[Callable[[], Any]]) -> Callable[[], float]:
        """Return what makes calls and gives the microseconds of each, host included."""

        def run() -> None:
            for call in calls:
                call()

        return lambda: self._timed(run, len(calls))

    def _timed(self, run: Callable[[], Any], count: int) -> float:
        self.wait()
        run()  # after another contestant caches are cold, and the graph's launch would be timed
        if self.device.type != "cuda":
            begin = time.perf_counter()
            run()
            return (time.perf_counter() - begin) * 1e6 / count
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1000 / count
