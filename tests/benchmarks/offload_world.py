"""The model of gpu_offload.py, and its two memories: rows in HBM, and the same on the host."""

from __future__ import annotations

from dataclasses import dataclass, field

import gpu_world as world
import torch
from gpu_decoder import Decoder, Size, make_decoder
from torch import Tensor, nn

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.module_spec import module_spec
from engram_cli.runtime import decoder as found_decoder
from engram_cli.runtime.hooks import hook
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules import MODULES
from engram_cli.runtime.modules.base import MultiHeadEmbedding, StoredRows, load_dense
from engram_cli.runtime.tiers.embedding import TieredEmbedding
from engram_cli.runtime.tiers.host import HostRows, host_memory
from engram_cli.runtime.tiers.staging import StagingQueue, local_tuning

PIECE_BYTES = 2**30  # as they are pinned
BARE, HBM, HOST, EARLY = "bare", "rows in HBM", "rows on the host", "rows on the host, prefetched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The sizes of a run; `tiny` ones pass through all of it on a CPU."""

    decoder: dict[str, int] = field(default_factory=dict)
    rows_per_head: int = 7_500_000  # 2 x 47.5 GB
    layers: tuple[int, int] = (1, 14)
    prefill: tuple[int, int] = (8, 2048)
    batch: int = 64
    attended: int = 1024
    replays: int = 50


TINY = Run(
    decoder={"layers": 3, "width": 64, "inner": 96, "heads": 4, "key_heads": 2, "head": 16},
    rows_per_head=1000,
    layers=(0, 2),
    prefill=(2, 32),
    batch=3,
    attended=12,
    replays=2,
)


class Bench:
    """A model with two memories that hold the same rows, in HBM and on the host."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run, self.device = run, device
        layout = world.published_layout(
            "deepseek-v4.1", layers=run.layers, rows_per_head=run.rows_per_head
        )
        assert layout.lookup is not None
        size = Size(vocabulary=len(layout.lookup), **run.decoder)
        self.model: Decoder = make_decoder(size, device)
        self.spec = BundleSpec(
            layout=layout,
            layers=run.layers,
            dim=256,
            dtype="fp8_e8m0",
            hidden_size=size.width,
            num_layers=size.layers,
            model_type="",
            module=module_spec("deepseek-v4.1"),
        )
        self.hashed = hash_tensors(layout, run.layers, device=device)
        self.memories: dict[str, Memory] = {}

    def attach_hbm(self) -> None:
        """Random rows on the device."""
        rows: dict[int, nn.Module] = {}
        for layer in self.spec.layers:
            count = self.spec.rows(layer)
            table = world.fp8_table(count, 256, world.random_bytes(count * 264, self.device))
            assert table.scales is not None
            rows[layer] = StoredRows(table.values, table.scales, row_type=table.row_type, dim=256)
        self.memories[HBM] = self._attach("engram_hbm", rows)

    def attach_host(self) -> None:
        """The same rows as records in host memory."""
        rows: dict[int, nn.Module] = {}
        staging_queue = StagingQueue(self.device, local_tuning())
        for layer in self.spec.layers:
            held = self.memories[HBM].layers[str(layer)].multi_head_embedding.embedding
            count, is_gpu = self.spec.rows(layer), self.device.type == "cuda"
            memory = host_memory(count * 264, pinned=is_gpu)
            # CUDA refuses a copy across the pieces that are pinned apart.
            for begin in range(0, len(memory), PIECE_BYTES):
                piece = memory[begin : begin + PIECE_BYTES]
                own = slice(begin // 264, -(-(begin + len(piece)) // 264))
                records = torch.cat([held.weight[own], held.scales[own]], dim=1).view(-1)
                piece.copy_(records[begin - own.start * 264 :][: len(piece)])
            rows[layer] = TieredEmbedding(
                self.spec,
                HostRows(memory.view(-1, 264)),
                device=self.device,
                dtype=torch.bfloat16,
                staging_queue=staging_queue,
            )
        self.memories[HOST] = self._attach("engram_host", rows)

    def _attach(self, name: str, rows: dict[int, nn.Module]) -> Memory:
        """As `attach` does it, with rows that come from no bundle."""
        spec, modules = self.spec, {}
        generator = torch.Generator(device=self.device).manual_seed(1)
        for layer in spec.layers:
            offsets = torch.tensor(spec.layout.layer(layer).offsets, device=self.device)
            with torch.device("meta"):
                embedding = MultiHeadEmbedding(rows[layer], offsets)  # type: ignore[arg-type]
                built = MODULES.load(spec.module.kind)(spec, embedding)
            weights = {}
            for key, shape in spec.dense_shapes.items():
                weight = torch.ones(shape, device=self.device, dtype=torch.bfloat16)
                if key == "wkv.weight":
                    weight.normal_(std=0.02, generator=generator)
                weights[key] = weight
            load_dense(built, weights)
            modules[layer] = built
        memory = Memory(name, spec, self.hashed, modules).eval().requires_grad_(False)
        layers = list(self.model.layers)
        found = found_decoder.Decoder(layers=layers, path=[self.model], hidden_size=None)
        hook(memory, self.model, found)
        self.model.add_module(name, memory)
        memory.active = False
        return memory

    def switch(self, which: str) -> None:
        """Let the memory of a contestant take part, and no other."""
        for name, memory in self.memories.items():
            memory.active = which.startswith(name)

    def ids(self, count: int, shape: tuple[int, int]) -> list[Tensor]:
        """`count` sets of uniformly random token ids."""
        generator = torch.Generator(device=self.device).manual_seed(2)
        high = self.model.size.vocabulary
        return [
            torch.randint(0, high, shape, device=self.device, generator=generator)
            for _ in range(count)
        ]
