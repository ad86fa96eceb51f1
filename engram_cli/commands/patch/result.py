"""What the commands of engram patch found and did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engram_cli.patches.stack import Conflict


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchInfo:
    """A patch: its rows, their bytes, and its digest. `number`: in the order of application, from
    1. `can_undo`: whether the journal has what it replaced. `applied`: False for one that was there
    already."""

    number: int
    digest: str
    description: str
    rows: int
    nbytes: int | None = None
    can_undo: bool | None = None
    applied: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyPatchResult:
    """What was applied to `path`, in place or to the copy `out`; `digest`: of what has the rows.

    `conflicts` count patches from 1, those in the artifact first.
    """

    path: Path
    out: Path | None
    patches: tuple[PatchInfo, ...]
    rows: int
    conflicts: tuple[Conflict, ...]
    digest: str
    journal: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoPatchResult:
    """What was undone, the last one first, and the patches that are `left`."""

    path: Path
    undone: tuple[PatchInfo, ...]
    left: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPatchesResult:
    """The patches that the rows of `path` have. `pending`: what was interrupted, None for nothing.

    `journal`: the folder from which patches are undone, None where there is none.
    """

    path: Path
    digest: str
    patches: tuple[PatchInfo, ...]
    pending: str | None
    journal: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPatchesResult:
    """Patches on a base: `rows` that differ from its, and where two give one row other values."""

    path: Path
    out: Path | None
    patches: tuple[PatchInfo, ...]
    rows: int
    conflicts: tuple[Conflict, ...]
    made_on: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRows:
    """Rows of a patch in a layer, from the first to the last. With a base: how many of them lie in
    each order and head, and the mean norm of their change, relative to the row before."""

    layer: int
    rows: int
    first: int
    last: int
    by_column: tuple[tuple[int, int, int], ...] = ()
    mean_change: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowPatchResult:
    """What a patch is. `fits`: why it does not fit the base, "" where it does, None without one.

    `has_digest`: whether the file states the digest, so that damage is found."""

    path: Path
    kind: str
    digest: str
    has_digest: bool
    fingerprint: str
    dtype: str
    dim: int
    rows: int
    nbytes: int
    description: str
    base: str | None
    base_format: str | None
    layers: tuple[LayerRows, ...]
    facts: dict[str, str]
    compared_with: Path | None = None
    fits: str | None = None
