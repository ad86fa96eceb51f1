"""Several patches on one base: which rows win, where two meet, and what each was made for.

Patches are applied in the order in which they are given; on a row that several have, the last one
wins. A patch may be made for the base, or for the base under patches before it: its digest of the
rows that it replaces (`Patch.replaced`) says for which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import MismatchError
from engram_cli.hashing.layout import short
from engram_cli.numbers import counted
from engram_cli.patches.patch import LayerPatch, Patch
from engram_cli.patches.replaced import read_rows, replaced_digest, rows_differ
from engram_cli.rows.source import StoredSource

Layers = Mapping[int, LayerPatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Two patches, counted from 0, that give `rows` rows other values, without knowing each other.

    `layer` and `row`: the first of these rows.
    """

    first: int
    second: int
    rows: int
    layer: int
    row: int

    def line(self) -> str:
        """Return it in words; patches count from 1."""
        return (
            f"patches {self.first + 1} and {self.second + 1} give {counted(self.rows, 'row')} "
            f"other values, such as row {self.row:,} of layer {self.layer}: "
            f"patch {self.second + 1} wins"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """Patches in the order in which they are applied, and `layers`, what they do together.

    `made_on`: for each, how many of the patches before it were on the base that it was made for;
    None where it does not say.
    """

    patches: tuple[Patch, ...]
    layers: Layers
    conflicts: tuple[Conflict, ...]
    made_on: tuple[int | None, ...]

    @property
    def rows(self) -> int:
        """The number of rows that differ from the base's."""
        return sum(map(len, self.layers.values()))

    def lines(self) -> list[str]:
        """Return what is stacked, and where two patches meet, in words; they count from 1."""
        count = len(self.patches)
        found = [f"{count} patch{'' if count == 1 else 'es'}: {counted(self.rows, 'row')}"]
        return found + [conflict.line() for conflict in self.conflicts]


def stack_patches(base: StoredSource, patches: Sequence[Patch], *, any_base: bool = False) -> Stack:
    """Return the stack of `patches` on `base`.

    Raises MismatchError for a patch of another layout, dtype or layer scale, and, unless
    `any_base`, for one whose base is neither `base` nor `base` under patches before it.
    """
    made_on: list[int | None] = []
    conflicts: list[Conflict] = []
    for index, patch in enumerate(patches):
        patch.require_fits(base)
        found = _made_on(base, patches[:index], patch)
        if found is None and says_base(patch) and not any_base:
            raise other_base(patch, base)
        made_on.append(found)
        conflicts += [
            met
            for before in range(found or 0, index)
            if (met := _conflict(patches, before, index)) is not None
        ]
    return Stack(
        patches=tuple(patches),
        layers=combined([patch.layers for patch in patches]),
        conflicts=tuple(conflicts),
        made_on=tuple(made_on),
    )


def says_base(patch: Patch) -> bool:
    """Return whether a patch says what it was made for."""
    return patch.base is not None or patch.replaced is not None


def other_base(patch: Patch, base: StoredSource) -> MismatchError:
    """Return the error for a patch that was made for something else."""
    digest = "" if patch.base is None else f" ({short(patch.base.removeprefix('sampled '))})"
    return MismatchError(
        f"the patch was made for another {patch.base_format or 'base'}{digest}: the "
        f"{counted(patch.rows, 'row')} that it replaces are not those of {base.path}",
        "apply it to the artifact that it was made for, or after the patches that it was made "
        "after; --any-base (any_base=True) replaces the rows whatever they are",
    )


def combined(layers: Sequence[Layers]) -> dict[int, LayerPatch]:
    """Return the rows of several patches as one; of a row that is in several, the last."""
    found = {}
    for layer in sorted({layer for own in layers for layer in own}):
        parts = [own[layer] for own in reversed(layers) if layer in own]
        if len(parts) == 1:
            found[layer] = parts[0]
            continue
        # np.unique gives the first of equal numbers, which is of the last patch.
        ids, at = np.unique(np.concatenate([part.ids for part in parts]), return_index=True)
        row_scales = [scales for part in parts if (scales := part.row_scales) is not None]
        found[layer] = LayerPatch(
            ids=ids,
            rows=np.concatenate([part.rows for part in parts])[at],
            scales=np.concatenate(row_scales)[at] if row_scales else parts[0].scales,
        )
    return found


def replace_rows(own: LayerPatch, other: LayerPatch | None) -> LayerPatch:
    """Return the rows of `own`, with those of `other` where both have a row."""
    if other is None:
        return own
    here, there = _both(own.ids, other.ids)
    if not len(here):
        return own
    rows = own.rows.copy()
    rows[here] = other.rows[there]
    scales, theirs = own.row_scales, other.row_scales
    if scales is None or theirs is None:
        return LayerPatch(ids=own.ids, rows=rows, scales=own.scales)
    scales = scales.copy()
    scales[here] = theirs[there]
    return LayerPatch(ids=own.ids, rows=rows, scales=scales)


def same_rows(one: Layers, two: Layers) -> tuple[int, int, int]:
    """Return how many rows two patches share and give other values, and layer and row of the first.

    (0, 0, 0) where there are none.
    """
    count, first = 0, (0, 0)
    for layer in sorted(one.keys() & two.keys()):
        here, there = _both(one[layer].ids, two[layer].ids)
        other = rows_differ(_at(one[layer], here), _at(two[layer], there))
        if other.any() and not count:
            first = layer, int(one[layer].ids[here[int(other.argmax())]])
        count += int(np.count_nonzero(other))
    return (count, *first)


def _made_on(base: StoredSource, before: Sequence[Patch], patch: Patch) -> int | None:
    """Return after how many patches the base is what `patch` was made for; None if it never is."""
    if patch.replaced is None:
        return 0 if patch.base is not None and patch.base == base.digest else None
    found = None
    rows = {layer: read_rows(base, layer, own.ids) for layer, own in patch.layers.items()}
    for count in range(len(before) + 1):
        if count:
            layers = before[count - 1].layers
            rows = {layer: replace_rows(own, layers.get(layer)) for layer, own in rows.items()}
        if replaced_digest(rows) == patch.replaced:
            found = count
    return found


def _conflict(patches: Sequence[Patch], first: int, second: int) -> Conflict | None:
    count, layer, row = same_rows(patches[first].layers, patches[second].layers)
    if not count:
        return None
    return Conflict(first=first, second=second, rows=count, layer=layer, row=row)


def _both(
    one: NDArray[np.int64], two: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the numbers that are in both lie in each."""
    _, here, there = np.intersect1d(one, two, assume_unique=True, return_indices=True)
    return here, there


def _at(own: LayerPatch, places: NDArray[np.int64]) -> LayerPatch:
    row_scales = own.row_scales
    return LayerPatch(
        ids=own.ids[places],
        rows=own.rows[places],
        scales=own.scales if row_scales is None else row_scales[places],
    )
