"""A layer's rows in tiers: what stands for its table in the model.

In: row numbers. Out: their vectors, hot rows from device memory, the others from the source below:
in place where it is pinned host memory and they are few, else staged (`reads`).
"""

from __future__ import annotations

import itertools
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
from engram_cli.runtime.tiers import operators
from engram_cli.runtime.tiers.host_rows import HostRows
from engram_cli.runtime.tiers.hot_set import hot_set
from engram_cli.runtime.tiers.placed import PlacedRows
from engram_cli.runtime.tiers.reading import Shelves, record_form
from engram_cli.runtime.tiers.reads import Reads
from engram_cli.runtime.tiers.ring import Road
from engram_cli.runtime.tiers.source import RowSource, record_layout
from engram_cli.runtime.tiers.streams import is_captured, with_index
from engram_cli.runtime.tiers.tuning import Tuning, local_tuning

Path = Literal["in-place", "staged"]
_PIECE_ROWS = 2**16  # hot rows fetched at once
_numbers = itertools.count()


class TieredRows(PlacedRows):
    """A layer's rows, frozen, in place of `Rows` or `StoredRows`.

    Not parameters or buffers: they stay where they were placed whatever is done to the model, and
    are in no state dict. `path` forces a way of reading, for measuring; None chooses by size.
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
        road: Road | None = None,
        tuning: Tuning | None = None,
        origin: tuple[Bundle, int] | None = None,
    ) -> None:
        """`cold` has every row; `hot_rows` int64, ascending, are copied to `device`.

        Quantised rows become numbers in `dtype`, float32 when None. `layer_scale`: the one float32
        of a layer that has one. `origin`: the bundle and layer that the rows are of.
        """
        super().__init__()
        self.spec, self.cold = spec, cold
        self.device = with_index(torch.device(device))
        self.road = road or Road(self.device, tuning or local_tuning())
        self.tuning = tuning or self.road.tuning
        self.path: Path | None = None
        self.origin = origin
        self.holders = 1
        self.waited = 0.0  # seconds that callers waited for the worker
        self.form = record_form(spec, layer_scale, self.device)
        hot = None if hot_rows is None or not len(hot_rows) else hot_rows
        self._nothing = torch.empty(0, record_layout(spec).record_bytes, dtype=torch.uint8)
        self.shelves = Shelves(
            form=self.form,
            cold=cold.records if isinstance(cold, HostRows) else self._nothing,
            counted=torch.zeros(2, 2, dtype=torch.int64, device=self.device),
            hot=None if hot is None else _fetch(cold, hot, self.device),
            hot_set=None if hot is None else hot_set(hot, cold.rows, self.device),
        )
        self.width = self.form.width
        self.dtype = self.form.items if self.form.kind == "plain" else dtype or torch.float32
        self._reaches = isinstance(cold, HostRows) and self._reaches_host()
        self.number = next(_numbers)
        operators.register(self.number, self)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T, C x dim] of rows int64[B, T, C], in the rows' dtype, or that of quantised ones."""
        rows = rows.to(self.device)
        if torch.compiler.is_compiling():
            found: Tensor = operators.tiered(rows, self.number, self.width, self.dtype)
            return found
        return self.vectors(rows)

    def vectors(self, rows: Tensor) -> Tensor:
        """`forward`, not to be traced. Raises RuntimeAttachError, and what the source raises."""
        if self.reads_in_place(rows):
            return self.in_place(rows)
        return Reads({0: self}, [rows]).take(0)

    def in_place(self, rows: Tensor) -> Tensor:
        """`forward`, cold rows read where they lie, by what is launched on the current stream."""
        out = self.empty(rows)
        flat = out.view(-1, self.width)
        ops.read_tiers(self.shelves, rows.reshape(-1).contiguous(), None, flat)
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
        captured, can = is_captured(self.device), self._reaches
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

    def _reaches_host(self) -> bool:
        """Whether the device can read the host's records."""
        if self.device.type == "cpu":
            return True
        return ops.has_kernels(self.device) and self.shelves.cold.is_pinned()

    def close(self) -> None:
        """Let go of the rows when no copy of the model holds them any more."""
        self.holders -= 1
        if self.holders == 0:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.shelves = replace(self.shelves, cold=self._nothing, hot=None, hot_set=None)
            self.road.close()
            self.cold.close()

    def __deepcopy__(self, memo: object) -> TieredRows:
        """The same: frozen rows are shared by copies of a model."""
        self.holders += 1
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        raise RuntimeAttachError(
            "rows in tiers cannot be pickled", "save_engram(model, folder) writes a bundle"
        )

    def extra_repr(self) -> str:
        """What is printed of it."""
        hot = 0 if self.shelves.hot is None else len(self.shelves.hot)
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
