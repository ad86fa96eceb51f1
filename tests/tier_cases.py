"""Small layers in tiers, on any device: records of every dtype, and what they must read as."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lookup_cases import scheme_layout
from torch import Tensor

from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES, BundleSpec
from engram_cli.runtime.tables import dequantise
from engram_cli.runtime.tiers.embedding import TieredEmbedding
from engram_cli.runtime.tiers.host import HostRows, host_memory
from engram_cli.runtime.tiers.records import record_layout, table_of

WIDTHS = {
    "float32": (12, 5),
    "float16": (24,),
    "bfloat16": (64, 1),
    "fp8_e8m0": (32, 96, 256),
    "fp8": (160, 7),
    "int8": (64, 33),
    "int8_b32": (33,),
    "int4": (7,),
}


def tier_spec(dtype: str, dim: int) -> BundleSpec:
    """The spec of two small layers."""
    layout = scheme_layout("engram-v1")
    return BundleSpec(
        layout=layout,
        layers=layout.layer_ids,
        dim=dim,
        dtype=dtype,
        hidden_size=8,
        num_layers=6,
        model_type="llama",
    )


def random_records(spec: BundleSpec, rows: int) -> Tensor:
    """Records whose values and scales all dtypes hold without NaN."""
    layout = record_layout(spec)
    generator = torch.Generator().manual_seed(spec.dim)
    shape = (rows, layout.record_bytes)
    raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    part = raw[:, : layout.row_bytes]
    if not spec.row_type.quantised:
        values = torch.randn(rows, spec.dim, generator=generator)
        dtype = getattr(torch, spec.dtype)
        part.copy_(values.to(dtype).contiguous().view(torch.uint8).view(rows, -1))
    elif spec.row_type.items.name == "e4m3":
        part &= 0xFE
    elif spec.dtype.startswith("int8"):
        part.clamp_(max=127)
    else:
        part &= 0x77
    begin, end = layout.scale_begin, layout.scale_begin + layout.scale_bytes
    if spec.dtype == "fp8_e8m0":
        raw[:, begin:end] = raw[:, begin:end] % 50 + 100
    elif (scaling := spec.row_type.scaling) is not None and layout.scale_bytes:
        dtype = torch.float16 if scaling.per == "block" else torch.float32
        scales = torch.rand(rows, layout.scale_bytes // dtype.itemsize, generator=generator)
        raw[:, begin:end] = scales.to(dtype).view(torch.uint8).view(rows, -1)
    return raw


def layer_scale(spec: BundleSpec) -> Tensor | None:
    """The scale of a layer that has one."""
    return torch.tensor([0.37]) if spec.row_type.of_layer else None


def hot_rows(rows: int, share: float = 0.3) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Some rows, ascending, the first and the last among them."""
    chosen = np.random.default_rng(rows).random(rows) < share
    chosen[[0, -1]] = share > 0
    return np.flatnonzero(chosen)


def host_records(records: Tensor, device: torch.device) -> HostRows:
    """Records where `device` can read them."""
    held = host_memory(records.numel(), pinned=device.type == "cuda").view(records.shape)
    held.copy_(records)
    return HostRows(held)


def a_store(
    spec: BundleSpec, records: Tensor, device: torch.device, share: float = 0.3, **options: Any
) -> TieredEmbedding:
    """A layer with its records on the host and some of them hot."""
    options.setdefault("cold", host_records(records, device))
    options.setdefault("hot_rows", hot_rows(len(records), share))
    return TieredEmbedding(spec, device=device, layer_scale=layer_scale(spec), **options)


def expected(spec: BundleSpec, records: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The vectors of rows [..., C] as a table in one place gives them, on the CPU."""
    table = table_of(records, spec, layer_scale=layer_scale(spec))
    return dequantise(table, rows.cpu(), dtype).flatten(-2)


def some_rows(height: int, *shape: int, seed: int = 0) -> Tensor:
    """int64[shape]: half of them from few rows, so that many are asked for twice."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randint(0, height, shape, generator=generator)
    narrow = torch.randint(0, min(height, 9), shape, generator=generator)
    rows = torch.where(torch.rand(shape, generator=generator) < 0.5, wide, narrow)
    rows.view(-1)[:1] = height - 1
    return rows


class MappedRows:
    """All rows of a layer from memory maps of a bundle: the plain `RecordSource` for tests."""

    def __init__(self, bundle: Bundle, layer: int) -> None:
        self._layout = record_layout(bundle.spec)
        parts = {ROWS: self._layout.row_bytes, SCALES: self._layout.scale_bytes}
        self._maps = {
            part: [own.reshape(len(own), -1).view(np.uint8) for own in bundle.maps(layer, part)]
            for part, size in parts.items()
            if size
        }
        self.rows = bundle.spec.rows(layer)
        self.record_bytes = self._layout.record_bytes
        self._given = 0

    def gather(self, rows: Tensor, out: Tensor) -> None:
        """Write the records of `rows` to `out` (`RecordSource.gather`)."""
        wanted = rows.numpy()
        for part, maps in self._maps.items():
            first = 0
            for own in maps:
                here = np.flatnonzero((wanted >= first) & (wanted < first + len(own)))
                lines = torch.from_numpy(own.take(wanted[here] - first, axis=0))
                self._layout.part(out, part)[torch.from_numpy(here)] = lines
                first += len(own)
        self._given += len(wanted)

    def counters(self) -> dict[str, int | float]:
        """Totals since the start (`RecordSource.counters`); seconds are not measured."""
        size = self._given * self.record_bytes
        return {"rows": self._given, "bytes": size, "hits": 0, "seconds": 0.0}

    def close(self) -> None:
        """Close the maps."""
        self._maps = {}
