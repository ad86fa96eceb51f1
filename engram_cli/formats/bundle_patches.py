"""Patches stacked on a bundle when it is loaded; nothing of the bundle is changed.

The runtime imports this file, so it needs NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.files import sha256_bytes
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_files import DESCRIPTION
from engram_cli.formats.table_reference import TableReference
from engram_cli.hashing.layout import HashLayout
from engram_cli.patches.patch import Patch
from engram_cli.patches.patch_file import read_patch
from engram_cli.patches.stack import Stack, stack_patches
from engram_cli.rows.source import ROWS, SCALES


def patched_bundle(
    bundle: Bundle, patches: Sequence[str | Path | Patch], *, any_base: bool = False
) -> tuple[Bundle, Stack]:
    """Return a bundle whose rows are those of `bundle` under `patches`, and the stack of them.

    Raises what `read_patch` and `stack_patches` raise.
    """
    opened = [each if isinstance(each, Patch) else read_patch(each) for each in patches]
    stack = stack_patches(_BundleRows(bundle), opened, any_base=any_base)
    return replace(bundle, patched=stack.layers), stack


@dataclass(frozen=True, slots=True)
class _BundleRows:
    """The rows of a bundle that a patch may replace, read from its maps (`StoredSource`)."""

    bundle: Bundle

    @property
    def path(self) -> Path:
        return self.bundle.folder

    @property
    def layout(self) -> HashLayout:
        return self.bundle.spec.layout

    @property
    def layers(self) -> tuple[int, ...]:
        return self.bundle.spec.layers

    @property
    def dim(self) -> int:
        return self.bundle.spec.dim

    @property
    def dtype(self) -> str:
        return self.bundle.spec.dtype

    @property
    def digest(self) -> str | None:
        """The digest of the description, or of the table that the bundle refers to."""
        if isinstance(self.bundle.reference, TableReference):
            return self.bundle.reference.digest
        description = self.bundle.folder / DESCRIPTION
        return sha256_bytes(description.read_bytes()) if description.is_file() else None

    def stored(self, layer: int, ids: ArrayLike) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the rows at ascending `ids` [n] as stored, and their scales."""
        wanted = np.asarray(ids, dtype=np.int64)
        rows = _taken(self.bundle.maps(layer, ROWS), wanted)
        if SCALES not in self.bundle.spec.parts:
            return rows, None
        scales = self.bundle.maps(layer, SCALES)
        of_layer = self.bundle.spec.row_type.of_layer
        return rows, np.array(scales[0]) if of_layer else _taken(scales, wanted)


def _taken(maps: list[NDArray[Any]], ids: NDArray[np.int64]) -> NDArray[Any]:
    """Return the rows at ascending `ids` of arrays that follow each other."""
    ends = np.cumsum([len(each) for each in maps])
    cuts = np.searchsorted(ids, [0, *ends])
    return np.concatenate(
        [
            each[ids[begin:stop] - (end - len(each))]
            for each, begin, stop, end in zip(maps, cuts[:-1], cuts[1:], ends, strict=True)
        ]
    )
