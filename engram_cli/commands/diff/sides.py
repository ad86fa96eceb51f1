"""Opens the two sides of a comparison: artifacts of one layout, with patches stacked on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import VOCABULARY, Artifact, Companions, find_artifact
from engram_cli.commands.diff.result import Side
from engram_cli.commands.requests.diff import DiffRequest
from engram_cli.errors import InputError
from engram_cli.formats.overlay import FORMAT as OVERLAY
from engram_cli.formats.overlay_patch import open_patch
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.patches.patch_file import is_patch
from engram_cli.patches.patched_rows import PatchedRows
from engram_cli.patches.stack import says_base, stack_patches
from engram_cli.progress import Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Both artifacts, opened, and the files that go with each.

    `rows`: with the `patches` of each side stacked on them.
    """

    found: tuple[Artifact, Artifact]
    rows: tuple[RowSource, RowSource]
    companions: tuple[Companions, Companions]
    patches: tuple[tuple[Path, ...], tuple[Path, ...]]

    @property
    def layout(self) -> HashLayout:
        """The layout of both."""
        return self.rows[0].layout

    @property
    def only(self) -> Mapping[int, NDArray[np.int64]] | None:
        """By layer, the rows that can differ: those of patches, where both have one base.

        None where all can.
        """
        if not any(self.patches) or not _is_one_place(*(each.path for each in self.found)):
            return None
        found: dict[int, list[NDArray[np.int64]]] = {layer: [] for layer in self.rows[0].layers}
        for rows in self.rows:
            if isinstance(rows, PatchedRows):
                for layer, own in rows.stack.layers.items():
                    found[layer].append(own.ids)
        none = [np.empty(0, dtype=np.int64)]
        return {layer: np.unique(np.concatenate(ids or none)) for layer, ids in found.items()}

    def described(self) -> tuple[Side, Side]:
        """Return what is said of each side."""
        one, two = (
            _described(*each) for each in zip(self.found, self.rows, self.patches, strict=True)
        )
        return one, two


def open_sides(request: DiffRequest, progress: Progress) -> Sides:
    """Open both sides. Raises InputError unless they have one layout, the same layers and dim,
    MismatchError for a patch of another layout."""
    paths, patches = _places(request)
    found = find_artifact(paths[0]), find_artifact(paths[1])
    opened = []
    for each, stacked in zip(found, patches, strict=True):
        if each.kind == VOCABULARY:
            raise InputError(
                f"{each.path} holds no vectors",
                "compare vocabularies: engram compress-vocab --diff",
            )
        own = each.open(tokenizer=request.tokenizer)
        if own.dim is None or own.dtype is None or not own.layers:
            raise InputError(
                f"{own.path} has no rows that can be compared",
                "give two tables, bundles or checkpoints with tables; engram inspect says why",
            )
        opened.append(_stacked(own, stacked, progress))
    one, two = opened
    _require_comparable(one, two)
    companions = [
        Companions(
            artifact=each.path, folder=request.folder, stats=request.stats, vocab=request.vocab
        )
        for each in found
    ]
    return Sides(
        found=found, rows=(one, two), companions=(companions[0], companions[1]), patches=patches
    )


def _places(
    request: DiffRequest,
) -> tuple[tuple[Path, Path], tuple[tuple[Path, ...], tuple[Path, ...]]]:
    """Return the artifact of each side, and its patches in the order in which they are applied.

    A patch as a side stands for the other side under it.
    """
    before, after = request.before, request.after
    one, two = tuple(request.patch_before), tuple(request.patch_after)
    loose = _is_loose(before), _is_loose(after)
    if all(loose):
        raise InputError(
            f"{before} and {after} are patches, which name no artifact",
            "name it: engram diff ARTIFACT PATCH, or ARTIFACT ARTIFACT --patch-after PATCH",
        )
    if loose[1]:
        return (before, before), (one, (*one, after, *two))
    if loose[0]:
        return (after, after), ((*two, before, *one), two)
    return (before, after), (one, two)


def _is_loose(path: Path) -> bool:
    """Return whether a path is a patch or an overlay: rows of an artifact that it does not hold."""
    return is_patch(path) or (path.is_file() and OVERLAY.recognise(path) is not None)


def _stacked(base: RowSource, paths: Sequence[Path], progress: Progress) -> RowSource:
    """Return the rows of a base under patches. Raises as `stack_patches`, for whatever base."""
    if not paths:
        return base
    patches = [open_patch(path, base) for path in paths]
    stack = stack_patches(base, patches, any_base=True)
    for path, patch, after in zip(paths, patches, stack.made_on, strict=True):
        if after is None and says_base(patch):
            progress.note(f"{path} was made for other rows than those of {base.path}")
    if stack.conflicts:
        for line in stack.lines()[1:]:
            progress.note(line)
    return PatchedRows(source=base, stack=stack)


def _require_comparable(one: RowSource, two: RowSource) -> None:
    if one.layout.fingerprint != two.layout.fingerprint:
        raise InputError(
            f"{one.path} has layout {short(one.layout.fingerprint)} ({_shape(one.layout)}), "
            f"{two.path} has {short(two.layout.fingerprint)} ({_shape(two.layout)})",
            "rows can be compared where both have one layout: see both with engram inspect",
        )
    if one.layers != two.layers:
        raise InputError(
            f"{one.path} has rows of the layers {_listed(one.layers)}, {two.path} of "
            f"{_listed(two.layers)}",
            "take the layers that both have: engram convert --layers",
        )
    if one.dim != two.dim:
        raise InputError(
            f"{one.path} has {one.dim} values a row, {two.path} {two.dim}",
            "give two artifacts with rows of one width",
        )


def _described(found: Artifact, rows: RowSource, patches: tuple[Path, ...]) -> Side:
    assert rows.dtype is not None
    row_bytes = DTYPES.load(rows.dtype).row_bytes(rows.dim or 0)
    height = sum(rows.layout.layer(layer).rows for layer in rows.layers)
    return Side(
        path=found.path,
        format=found.kind,
        dtype=rows.dtype,
        bytes=height * row_bytes,
        patches=patches,
    )


def _is_one_place(one: Path, two: Path) -> bool:
    return one == two or os.path.realpath(one) == os.path.realpath(two)


def _shape(layout: HashLayout) -> str:
    """Return what differs between layouts most often, in words."""
    orders = ", ".join(map(str, layout.orders))
    rows = sum(sum(entry.moduli) for entry in layout.layers)
    return (
        f"{layout.scheme}, {orders}-grams, {layout.heads} heads, "
        f"layers {_listed(layout.layer_ids)}, {rows:,} rows"
    )


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
