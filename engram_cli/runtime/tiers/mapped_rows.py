"""All rows of a layer from memory maps of the bundle: the plain twin of what reads rows itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES
from engram_cli.runtime.tiers.source import record_layout


class MappedRows:
    """Records taken from maps; what is in memory is the system's choice. A `RowSource`."""

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
        """Write the records of `rows` to `out` (`RowSource.gather`)."""
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
        """Sums since the start (`RowSource.counters`); time is not kept."""
        size = self._given * self.record_bytes
        return {"rows": self._given, "bytes": size, "hits": 0, "seconds": 0.0}

    def close(self) -> None:
        """Let go of the maps."""
        self._maps = {}
