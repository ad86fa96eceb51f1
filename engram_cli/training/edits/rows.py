"""Other values for some rows of a live memory, which the tables themselves do not get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_cli.runtime import loading
from engram_cli.runtime.batch_rows import RowFinder
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules.base import MemoryModule
from engram_cli.training.edits.choice import Candidates

HitsAt = Callable[[int, NDArray[np.int64]], NDArray[np.integer]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowValues:
    """Values of some rows of a layer: `rows` int64[n] ascending, `values` float32[n, dim]."""

    rows: Tensor
    values: Tensor


class EditedRows(nn.Module):
    """The rows of a layer, some of which have other values; a gradient goes to these alone."""

    def __init__(self, base: nn.Module, edited: RowValues) -> None:
        super().__init__()
        self.base, self.edited = base, edited

    def forward(self, rows: Tensor) -> Tensor:
        """Return [B, T, C, dim] of table rows int64[B, T, C]."""
        found: Tensor = self.base(rows)
        if found.ndim == rows.ndim:
            found = found.reshape(*rows.shape, -1)
        own = self.edited.rows
        wanted = rows.to(own.device)
        places = torch.searchsorted(own, wanted).clamp_max(len(own) - 1)
        changed = own[places] == wanted
        values = self.edited.values[places].to(found.device, found.dtype)
        return torch.where(changed.to(found.device)[..., None], values, found)


@contextmanager
def edited_rows(memory: Memory, edits: Mapping[int, RowValues]) -> Iterator[None]:
    """Give the rows of `edits`, by layer, their values while the block runs."""
    kept: dict[int, Any] = {}
    try:
        for layer, own in edits.items():
            if len(own.rows):
                embedding = embedding_of(memory, layer)
                kept[layer] = embedding.embedding
                embedding.embedding = cast(Any, EditedRows(kept[layer], own))
        yield
    finally:
        for layer, base in kept.items():
            embedding_of(memory, layer).embedding = base


def embedding_of(memory: Memory, layer: int) -> Any:
    """Return the module that holds the rows of a layer."""
    return cast(MemoryModule, memory.layers[str(layer)]).multi_head_embedding


def values_at(memory: Memory, layer: int, rows: Tensor) -> Tensor:
    """Return float32[n, dim]: what the rows int64[n] of a layer hold now."""
    with torch.no_grad():
        embedding = embedding_of(memory, layer)
        found: Tensor = embedding(rows[None, None].to(embedding.offsets.device))
    return found.reshape(len(rows), -1).float()


def find_candidates(
    memory: Memory, finder: RowFinder, ids: NDArray[np.int64], hits_at: HitsAt | None
) -> Candidates:
    """Return the look-ups of a fact's token ids but the last, which predicts nothing.

    `hits_at`: the hits of rows of a layer; None where they are not known, and count as zero.
    """
    layers = memory.spec.layers
    found = finder.find(torch.from_numpy(ids)[None])[0, :, :-1].numpy().astype(np.int64)
    hits = np.zeros(found.shape, dtype=np.uint64)
    if hits_at is not None:
        for place, layer in enumerate(layers):
            hits[place] = hits_at(layer, found[place])
    return Candidates(layers=layers, rows=found, hits=hits)


def row_finder(memory: Memory) -> RowFinder:
    """Return what finds the rows that a memory reads."""
    spec, vocabulary = memory.spec, len(memory.hash_tensors().lookup)
    hashed = loading.hash_tensors(spec.layout, spec.layers, vocab_size=vocabulary)
    return RowFinder(hashed, packed=spec.packed)
