"""What the benchmark of the tiers runs in: rows in host memory, and everyone who looks them up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_disk
import gpu_peers
import gpu_world as world
import numpy as np
import torch
from tiers_cases import ROW_BYTES, Calls
from torch import Tensor

from engram_cli.runtime import lookup_reference, ops
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.tables import Table
from engram_cli.runtime.tiers.embedding import TieredEmbedding
from engram_cli.runtime.tiers.host import HostRows, host_memory
from engram_cli.runtime.tiers.records import table_of
from engram_cli.runtime.tiers.staging import local_tuning

OURS = "engram"  # by the way that it chooses itself
IN_PLACE, STAGED = "engram, in place", "engram, staged"
COPY = "copy engine alone"
SGLANG = ("SGLang, UVA", "SGLang, UVA, sorted", "SGLang, staged by 16 threads, given row ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    rows_per_head: int = 10_000_000
    tokens: tuple[int, ...] = (1, 8, 64, 512, 4096, 16384)
    crossing: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    captured: tuple[int, ...] = (1, 8, 64, 512)
    domain_tokens: tuple[int, ...] = (64, 4096, 16384)
    rounds: int = 9


TINY = Size(
    rows_per_head=2000,
    tokens=(1, 64),
    crossing=(2, 8),
    captured=(1,),
    domain_tokens=(64,),
    rounds=2,
)


class World:
    """The rows in host memory, and who looks them up."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        self.spec = gpu_disk.spec_of(size.rows_per_head)
        self.hashed = hash_tensors(self.spec.layout, self.spec.layers, device=device)
        self.rows = self.spec.rows(gpu_disk.LAYER)
        begin = time.perf_counter()
        self.buffer = host_memory(self.rows * 264, pinned=device.type == "cuda")
        self.pinned_seconds = time.perf_counter() - begin
        for part in self.buffer.split(2**30):
            # As value or as scale, a byte is an ordinary number: 2 to 448, or 2**-63 to 1/2.
            part.copy_(world.random_bytes(len(part), device).bitwise_and_(0x7E).bitwise_or_(0x40))
        self.tuning = local_tuning()
        self.store = self.tiered(None)
        self.place = gpu_peers.folder() if device.type == "cuda" else None
        self.peers: dict[str, Any] = {}
        if self.place is not None:
            self._find_peers(self.place)

    def tiered(self, hot_rows: np.ndarray | None) -> TieredEmbedding:
        """Our rows over the one buffer."""
        return TieredEmbedding(
            self.spec,
            HostRows(self.buffer.view(-1, 264)),
            device=self.device,
            hot_rows=hot_rows,
            dtype=torch.bfloat16,
            tuning=self.tuning,
        )

    def _find_peers(self, place: Path) -> None:
        """The same bytes as their layout has them: all values, then all scales."""
        values = self.buffer[: self.rows * 256].view(-1, 256)
        scales = self.buffer[self.rows * 256 :].view(-1, 8)
        self.theirs = Table(values=values, scales=scales)
        for name, sort in zip(SGLANG, (False, True), strict=False):
            made = gpu_peers.SGLang(place, self.hashed, values, scales, sort=sort)
            self.peers[name] = lambda ids, made=made: made.prefill(ids[0])
        staged = gpu_peers.StagedSGLang(place, values, scales)
        self.peers[SGLANG[2]] = lambda ids: staged.prefill(self.find(ids).flatten().cpu())
        for name, sort in (("vLLM, UVA", False), ("vLLM, UVA, sorted", True)):
            other = gpu_peers.VLLM(place, self.hashed, values, scales, sort=sort)
            self.peers[name] = lambda ids, made=other: made.prefill(ids[0])

    def find(self, ids: Tensor) -> Tensor:
        """int64[1, T, 24]: the rows of token ids [1, T]."""
        return ops.find_rows(self.hashed, ids)[0]

    def ours(self, store: TieredEmbedding, ids: Tensor, path: Any) -> Callable[[], Tensor]:
        """A look-up by a forced path, or the chosen one."""

        def call() -> Tensor:
            store.path = path
            found: Tensor = store(self.find(ids))
            return found

        return call

    def id_sets(self, count: int, sets: int = 10) -> list[Tensor]:
        """Sets of int32[1, count] uniformly random token ids."""
        generator = torch.Generator(device=self.device).manual_seed(count)
        high, options = len(self.hashed.lookup), {"device": self.device, "dtype": torch.int32}
        return [
            torch.randint(0, high, (1, count), generator=generator, **options) for _ in range(sets)
        ]

    def contestants(
        self, sets: list[Tensor], stores: dict[str, TieredEmbedding]
    ) -> dict[str, Calls]:
        """Everyone on these token ids; `stores` by what is added to our name."""
        found: dict[str, Calls] = {n: [peer(x) for x in sets] for n, peer in self.peers.items()}
        if self.device.type == "cuda":
            target = torch.empty(sets[0].numel() * ROW_BYTES, dtype=torch.uint8, device="cuda")
            source = self.buffer[: len(target)]
            found[COPY] = [lambda: target.copy_(source, non_blocking=True)]
        for more, store in stores.items():
            for name, path in ((OURS, None), (IN_PLACE, "in-place"), (STAGED, "staged")):
                found[f"{name}{more}"] = [self.ours(store, x, path) for x in sets]
        return found


def check(it: World) -> dict[str, Any]:
    """Every way of reading gives what the twin gives on the CPU."""
    ids = it.id_sets(64)[0]
    cpu = hash_tensors(it.spec.layout, it.spec.layers)
    rows = lookup_reference.find_rows(cpu, ids.cpu())
    records = table_of(it.buffer.view(-1, 264), it.spec)
    expected = lookup_reference.vectors([records], rows, torch.bfloat16)[0]
    hot = np.unique(rows.numpy().reshape(-1)[::3])
    for store in (it.store, it.tiered(hot)):
        for path in ("in-place", "staged", None):
            _same(it.ours(store, ids, path)(), expected)
    if it.peers:
        other = lookup_reference.vectors([it.theirs], rows, torch.bfloat16)[0]
        for name, peer in it.peers.items():
            found = peer(ids)()
            _same(found[1] if isinstance(found, tuple) else found, other, name)
    return {"checked": "all ways of reading equal the twin"}


def _same(found: Tensor, expected: Tensor, name: str = "engram") -> None:
    bits = [x.reshape(-1).cpu().view(torch.int16) for x in (found, expected)]
    if not torch.equal(*bits):
        raise ValueError(f"{name} reads other vectors")
