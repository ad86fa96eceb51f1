"""From an opened bundle to torch: the hash, a layer's table, a layer's module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram_cli.formats.bundle import Bundle
from engram_cli.hashing.layout import HashLayout
from engram_cli.runtime.modules import MODULES
from engram_cli.runtime.modules.base import MemoryModule, MultiHeadEmbedding, Rows, load_dense
from engram_cli.runtime.reference import HashTensors
from engram_cli.vocab.lookup import HOLE


def hash_tensors(
    layout: HashLayout,
    layers: tuple[int, ...],
    *,
    vocab_size: int = 0,
    device: torch.device | str = "cpu",
) -> HashTensors:
    """The hash of `layers` as tensors on `device`.

    Ids from the layout's vocabulary up to `vocab_size`, which models pad their embedding with, are
    holes.
    """
    lookup = np.full(max(layout.vocab_size, vocab_size), HOLE, dtype=np.int32)
    own = np.arange(layout.compressed_size) if layout.lookup is None else layout.lookup
    lookup[: len(own)] = own
    entries = [layout.layer(layer) for layer in layers]
    multipliers = torch.zeros(len(layers), len(layout.orders), layout.max_order, dtype=torch.int64)
    for i, entry in enumerate(entries):
        for j, order in enumerate(layout.orders):
            multipliers[i, j, :order] = torch.tensor(layout.lag_multipliers(entry, order))
    columns = [
        [
            (modulus, (2**64 - 1) // modulus, offset, salt)
            for modulus, offset, salt in zip(entry.moduli, entry.offsets, entry.salts, strict=True)
        ]
        for entry in entries
    ]
    return HashTensors(
        orders=layout.orders,
        filler=layout.filler_id,
        eos=layout.eos_id,
        shared=layout.fold == "newest-first",
        lookup=torch.from_numpy(lookup).to(device),
        multipliers=multipliers.to(device),
        columns=torch.tensor(columns, dtype=torch.int64, device=device),
        salted=any(salt for entry in entries for salt in entry.salts),
        heights=tuple(sum(entry.moduli) for entry in entries),
    )


def table(bundle: Bundle, layer: int) -> Tensor:
    """A layer's table [rows, dim] in its own dtype.

    One shard is mapped: its pages are read when touched and copied when changed. Several are copied
    into one tensor.
    """
    maps = table_pieces(bundle, layer)
    return maps[0] if len(maps) == 1 else torch.cat(maps)


def table_pieces(bundle: Bundle, layer: int) -> list[Tensor]:
    """A layer's shards [n, dim], ascending, mapped."""
    return [_as_torch(array, bundle.spec.dtype) for array in bundle.row_maps(layer)]


def module(
    bundle: Bundle,
    layer: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    rows_device: torch.device,
    trainable: bool,
    sparse: bool,
) -> MemoryModule:
    """A layer's module: dense weights in `dtype` on `device`, the table on `rows_device`."""
    spec = bundle.spec
    rows = Rows(table(bundle, layer).to(rows_device), trainable=trainable, sparse=sparse)
    offsets = torch.tensor(spec.layout.layer(layer).offsets, device=rows_device)
    with torch.device("meta"):
        built = MODULES.load(spec.module.kind)(spec, MultiHeadEmbedding(rows, offsets))
    load_dense(
        built,
        {
            name: torch.from_numpy(np.array(value)).to(device, dtype)
            for name, value in bundle.dense[layer].items()
        },
    )
    return built


def _as_torch(array: np.ndarray[Any, Any], dtype: str) -> Tensor:
    if dtype != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
