"""What `engram diff` found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["equal", "within", "changed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two: where it is, what it is, how its rows are stored, and the `patches` that
    are stacked on them."""

    path: Path
    format: str
    dtype: str
    bytes: int
    patches: tuple[Path, ...] = ()

    def stacked(self, path: str) -> str:
        """Return `path` with the names of the patches on it."""
        return " + ".join((path, *(each.name for each in self.patches)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnDiff:
    """The rows of one head of an order in a layer.

    `within`: rows that differ by no more than the codec's error. `stand_out`: changed rows that the
    n-grams are named of. `cosine`, `relative`: means over the changed rows of the cosine of both
    sides and of the norm of the difference relative to the row; `largest`: the largest of the
    latter; None where no finite row changed. `not_finite`: changed rows with NaN or infinity.
    """

    layer: int
    order: int
    head: int
    rows: int
    changed: int
    within: int
    stand_out: int
    not_finite: int
    cosine: float | None
    relative: float | None
    largest: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDiff:
    """A changed row. `row` is the head's own, from 0, `table_row` that of the layer's table.

    `norm`: of the difference; `relative` to the norm of the row before.
    """

    layer: int
    order: int
    head: int
    row: int
    table_row: int
    norm: float
    relative: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramDiff:
    """An n-gram whose rows changed in all heads of `layers`.

    `tokens`: its compressed ids, the oldest first. `count`: how often it occurs, at most unless
    `exact`. `norm`: of the difference of its least changed row, in the layer where that is largest,
    rounded down to an eighth of a power of two.
    """

    order: int
    text: str
    tokens: tuple[int, ...]
    count: int
    exact: bool
    layers: tuple[int, ...]
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderNgrams:
    """The n-grams of an order on changed rows, the most frequent first.

    `found`: all of them, of which `listed` are here. `rows`: rows that are asked about; `explained`
    of them are on one of these n-grams. `by_chance`: the probability that any other n-gram is taken
    for one of them, since the rows of all its heads in some layer are among those. `dropped`: the
    table of counts was full: rare n-grams are missing, and counts are at least so large.
    """

    order: int
    found: int
    listed: tuple[NgramDiff, ...]
    rows: int
    explained: int
    by_chance: float
    dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffResult:
    """What differs between the rows of two artifacts of one layout.

    `verdict`: "equal"; "within" the error of the codecs, which is no change; or "changed".
    `from_norm`: of differences, from which on a row stands out; None where none stands out from the
    others, and the n-grams of all changed rows are named. `half_rows`: the most changed rows that
    have half of the change, the sum of the squared norms; `change_shares`: (share of the changed
    rows, share of the change). `named_by`: what the n-grams are from, None where nothing names
    them. `memory_bytes`: the levels of all rows, one byte each. `compared_bytes`: of both sides,
    read in `compare_seconds`; `seconds`: of all. `patch`: written, with `patch_rows` rows.
    """

    before: Side
    after: Side
    verdict: Verdict
    fingerprint: str
    layers: tuple[int, ...]
    dim: int
    rows: int
    changed: int
    within: int
    stand_out: int
    from_norm: float | None
    half_rows: int | None
    change_shares: tuple[tuple[float, float], ...]
    columns: tuple[ColumnDiff, ...]
    most: tuple[RowDiff, ...]
    named_by: str | None
    sample_exact: bool | None
    corpus_tokens: int | None
    ngrams: tuple[OrderNgrams, ...]
    memory_bytes: int
    compare_seconds: float
    seconds: float
    compared_bytes: int = 0
    patch: Path | None = None
    patch_rows: int = 0
    report: Path | None = None

    @property
    def same(self) -> bool:
        """Whether nothing changed but what the codecs' error explains."""
        return self.verdict != "changed"
