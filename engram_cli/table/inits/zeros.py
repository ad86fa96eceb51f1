"""zeros: every row is zero, and takes no room on disks that know holes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engram_cli.table.inits.base import Filler


@dataclass(frozen=True, slots=True, kw_only=True)
class Zeros:
    """Rows of zeros."""

    @property
    def name(self) -> str:
        """The init's name in the registry."""
        return "zeros"

    @property
    def parameters(self) -> dict[str, Any]:
        """Nothing decides zeros."""
        return {}

    def filler(self, layer: int, dim: int) -> Filler | None:
        """None: the rows are zero."""
        return None

    def bound(self, layer: int, dim: int) -> float:
        """0: the rows are zero."""
        return 0.0
