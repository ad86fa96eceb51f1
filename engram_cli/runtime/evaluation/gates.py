"""Measures how far the gates of a model's memories open while the model reads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_cli.runtime.carried import memories
from engram_cli.runtime.modules.base import MemoryModule

BINS = 100  # of a gate's 0..1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKey:
    """A layer of a memory: the memory's name, the layer's number in the table, its place."""

    memory: str
    layer: int
    decoder_layer: int


class GateMeter:
    """Inside its `with` block, sums up the gates of each layer; several blocks add up.

    Those of a patched memory are left out: it has the gates of the memory without the patches.

    For each layer: `bins` int64[BINS], the gates of all streams by size; `positions`, how many
    tokens they are of; `sums` float64[2], the sum of the gates, and that of the norm of what was
    added over the norm of the hidden state. Padding is left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[tuple[LayerKey, MemoryModule]] = []
        for name, memory in memories(model).items():
            if memory.patched:
                continue
            for layer in memory.spec.layers:
                key = LayerKey(memory=name, layer=layer, decoder_layer=memory.spec.index(layer))
                module: Any = memory.layers[str(layer)]
                self._modules.append((key, module))
        self.keys = tuple(key for key, _ in self._modules)
        self.bins = np.zeros((len(self.keys), BINS), dtype=np.int64)
        self.positions = np.zeros(len(self.keys), dtype=np.int64)
        self.sums = np.zeros((len(self.keys), 2))
        self._handles: list[Any] = []
        self._seconds = 0.0

    def __enter__(self) -> GateMeter:
        for index, (_, module) in enumerate(self._modules):
            hook = self._listener(index)
            self._handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def counted(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The bins, the positions and the sums."""
        return self.bins, self.positions, self.sums

    def set_counted(self, every: Sequence[tuple[Any, ...]]) -> None:
        """Take the sums of what several processes `counted`."""
        self.bins, self.positions, self.sums = (sum(own) for own in zip(*every, strict=True))

    def take_seconds(self) -> float:
        """Return the seconds that measuring took since this was last asked."""
        taken, self._seconds = self._seconds, 0.0
        return taken

    def _listener(self, index: int) -> Any:
        def listen(module: MemoryModule, args: tuple[Any, ...], output: Any) -> None:
            hidden, rows = args[:2]
            _wait(hidden)
            begin = time.perf_counter()
            keep = args[2] if len(args) > 2 else None
            self._add(index, module, hidden, rows, keep, args)
            _wait(hidden)
            self._seconds += time.perf_counter() - begin

        return listen

    def _add(
        self,
        index: int,
        module: MemoryModule,
        hidden: Tensor,
        rows: Tensor,
        keep: Tensor | None,
        args: tuple[Any, ...],
    ) -> None:
        streams = hidden.reshape(*rows.shape[:2], module.carried_streams, -1)
        gates = module.gates(streams.to(module.anchor.device), module.vectors(rows))[..., 0]
        added, _ = module.forward(*args)  # the output is the sum; without the hooks
        base = hidden.reshape(*rows.shape[:2], -1).float().norm(dim=-1)
        share = added.reshape(*rows.shape[:2], -1).float().norm(dim=-1) / base.clamp_min(1e-12)
        gates = gates.float()
        if keep is not None:
            real = keep.to(gates.device)
            gates, share = gates[real], share[real.to(share.device)]
        found = torch.histc(gates, BINS, 0.0, 1.0).round().long().cpu()
        self.bins[index] += found.numpy()
        self.positions[index] += share.numel()
        self.sums[index] += np.array([gates.double().sum().item(), share.double().sum().item()])


def shares_above(bins: NDArray[np.int64], thresholds: tuple[float, ...]) -> tuple[float, ...]:
    """Return the share of gates at or above each threshold, a multiple of 1 / BINS."""
    total = max(int(bins.sum()), 1)
    return tuple(int(bins[round(BINS * each) :].sum()) / total for each in thresholds)


def _wait(tensor: Tensor) -> None:
    """Wait for the device, whose work is not timed otherwise."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
