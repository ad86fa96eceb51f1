"""A layer's table in tiers, as the module that the model calls.

Given row numbers it returns their vectors: hot rows from device memory, other rows from the source
below. These are read in place where the source is pinned host memory and they are few, and staged
otherwise (`tier_reader`). For torch.compile the look-up is one operator, `engram::tiered`. It finds
its layer by a number, because host tensors as arguments would keep inductor from using CUDA graphs.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime import ops
from engram_cli.runtime.tiers.host_rows import HostRows
from engram_cli.runtime.tiers.hot_set import hot_set
from engram_cli.runtime.tiers.protocol import PlacedRows, RowSource
from engram_cli.runtime.tiers.staging_ring import StagingQueue, Tuning, local_tuning
from engram_cli.runtime.tiers.streams import is_captured, with_index
from engram_cli.runtime.tiers.tier_reader import TierReader
from engram_cli.runtime.tiers.tier_records import TierBuffers, record_form, record_layout

_STORES: weakref.WeakValueDictionary[int, PlacedRows] = weakref.WeakValueDictionary()


def _register(number: int, store: PlacedRows) -> None:
    """Let the operator find `store` by `number` for as long as it exists."""
    _STORES[number] = store


@torch.library.custom_op("engram::tiered", mutates_args=())
def tiered(rows: Tensor, store: int, width: int, dtype: torch.dtype) -> Tensor:
    """`PlacedRows.vectors` of rows int64[..., C]: [..., C x width] in `dtype`."""
    return _STORES[store].vectors(rows)


@tiered.register_fake
def _(rows, store, width, dtype):  # type: ignore[no-untyped-def]
    return rows.new_empty((*rows.shape[:-1], rows.shape[-1] * width), dtype=dtype)


Path = Literal["in-place", "staged"]
_PIECE_ROWS = 2**16  # hot rows fetched at once
_numbers = itertools.count()


class TieredEmbedding(PlacedRows):
    """A layer's rows, frozen, in place of `Rows` or `StoredRows`.

    They are neither parameters nor buffers: they stay where they were placed when the model is
    moved, and are in no state dict. `path` forces a way of reading, for measuring; None chooses by
    size.
    """

    def __init__(
        self,
        spec: BundleSpec,
        cold: RowSource,
        *,
        device: torch.device | str,
        hot_rows: NDArray[np.int64] | None = None,
        layer_scale: Tensor | None = None,
        dtype: torch.dtype | None = None,
        staging_queue: StagingQueue | None = None,
        tuning: Tuning | None = None,
        origin: tuple[Bundle, int] | None = None,
    ) -> None:
        """`cold` has every row; `hot_rows` int64, ascending, are copied to `device`.

        Quantised rows are dequantised to `dtype`, float32 when None. `layer_scale`: one float32,
        for row types with one scale a layer. `origin`: the bundle and the layer of the rows.
        """
        super().__init__()
        self.spec, self.cold = spec, cold
        self.device = with_index(torch.device(device))
        self.staging_queue = staging_queue or StagingQueue(self.device, tuning or local_tuning())
        self.tuning = tuning or self.staging_queue.tuning
        self.path: Path | None = None
        self.origin = origin
        self.holders = 1
        self.waited = 0.0  # seconds that callers waited for the copies
        self.form = record_form(spec, layer_scale, self.device)
        hot = None if hot_rows is None or not len(hot_rows) else hot_rows
        self._nothing = torch.empty(0, record_layout(spec).record_bytes, dtype=torch.uint8)
        self.tier_buffers = TierBuffers(
            form=self.form,
            cold=cold.records if isinstance(cold, HostRows) else self._nothing,
            counted=torch.zeros(2, 2, dtype=torch.int64, device=self.device),
            hot=None if hot is None else _fetch(cold, hot, self.device),
            hot_set=None if hot is None else hot_set(hot, cold.rows, self.device),
        )
        self.width = self.form.width
        self.dtype = self.form.items if self.form.kind == "plain" else dtype or torch.float32
        self._can_read_host = isinstance(cold, HostRows) and self._device_reads_host()
        self.number = next(_numbers)
        _register(self.number, self)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T, C x dim] of rows int64[B, T, C], in the rows' dtype, or that of quantised ones."""
        rows = rows.to(self.device)
        if torch.compiler.is_compiling():
            found: Tensor = tiered(rows, self.number, self.width, self.dtype)
            return found
        return self.vectors(rows)

    def vectors(self, rows: Tensor) -> Tensor:
        """`forward` outside torch.compile. Raises RuntimeAttachError, and the source's errors."""
        if self.reads_in_place(rows):
            return self.in_place(rows)
        return TierReader({0: self}, [rows]).take(0)

    def in_place(self, rows: Tensor) -> Tensor:
        """`forward` with cold rows read in place, by a kernel on the current stream."""
        out = self.empty(rows)
        flat = out.view(-1, self.width)
        ops.read_tiers(self.tier_buffers, rows.reshape(-1).contiguous(), None, flat)
        return out

    def empty(self, rows: Tensor) -> Tensor:
        """Memory for the vectors of rows [..., C]."""
        shape = (*rows.shape[:-1], rows.shape[-1] * self.width)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def reads_in_place(self, rows: Tensor) -> bool:
        """Whether these rows are read in place. Raises RuntimeAttachError where they must be, and
        after `close`.
        """
        if not self.holders:
            raise RuntimeAttachError("the memory was detached", "attach it again")
        captured, can = is_captured(self.device), self._can_read_host
        if captured and not can:
            raise RuntimeAttachError(
                "rows below host memory cannot be read inside a CUDA graph",
                "attach with placement='host' or 'hbm', or run without CUDA graphs",
            )
        if captured or not can:
            return can
        if self.path is not None:
            return self.path == "in-place"
        few = rows.numel() * self.cold.record_bytes <= self.tuning.in_place_bytes
        return few or self.device.type == "cpu"

    def _device_reads_host(self) -> bool:
        """Whether the device can read the host's records."""
        if self.device.type == "cpu":
            return True
        return ops.has_kernels(self.device) and self.tier_buffers.cold.is_pinned()

    def close(self) -> None:
        """Free the rows when no copy of the model uses them any more."""
        self.holders -= 1
        if self.holders == 0:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.tier_buffers = replace(
                self.tier_buffers, cold=self._nothing, hot=None, hot_set=None
            )
            self.staging_queue.close()
            self.cold.close()

    def __deepcopy__(self, memo: object) -> TieredEmbedding:
        """Return the module itself: copies of a model share frozen rows."""
        self.holders += 1
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        raise RuntimeAttachError(
            "rows in tiers cannot be pickled", "save_engram(model, folder) writes a bundle"
        )

    def extra_repr(self) -> str:
        """What `print` shows of the module."""
        hot = 0 if self.tier_buffers.hot is None else len(self.tier_buffers.hot)
        below = type(self.cold).__name__
        return f"{self.cold.rows}, {self.width}, {self.spec.dtype}, {hot} in hbm, {below} below"


def _fetch(cold: RowSource, hot: NDArray[np.int64], device: torch.device) -> Tensor:
    """uint8[H, record_bytes] on the device: the records of hot rows, in pieces."""
    found = torch.empty(len(hot), cold.record_bytes, dtype=torch.uint8, device=device)
    for begin in range(0, len(hot), _PIECE_ROWS):
        rows = torch.from_numpy(np.ascontiguousarray(hot[begin : begin + _PIECE_ROWS]))
        piece = torch.empty(len(rows), cold.record_bytes, dtype=torch.uint8)
        cold.gather(rows, piece)
        found[begin : begin + len(rows)].copy_(piece)
    return found
