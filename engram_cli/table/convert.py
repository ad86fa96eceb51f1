"""Converting rows to a table: a `RowSource` in, its rows as a `TableSpec` to build; and comparing.

The rows come from the source, piece by piece, through the same build as a new table: same journal,
same lock, same end. Hits and vocabulary map, and of a table the record of its init, are the
source's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError, MismatchError
from engram_cli.files import canonical_json
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import kernels
from engram_cli.rows.source import HITS, SCALES, RowSource
from engram_cli.rows.stored_as import (
    StoredReader,
    kept_dtype,
    layer_scale,
    sampled_digest,
    stored_reader,
)
from engram_cli.table.grid import ChunkedArray, projection_array
from engram_cli.table.inits.base import Filler
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import PIECE_BYTES, TableStore, open_array

_PIECES = 64  # pieces of a task


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsOfSource:
    """An init whose rows are those of a source; of a table it has the name of the table's init.

    `kept`: the dtype of the table if its rows are copied as they are stored, None to encode them.
    """

    source: RowSource
    kept: str | None = None

    @property
    def name(self) -> str:
        """The init of a table, else the name of the source's format."""
        return self.source.init if isinstance(self.source, TableStore) else self.source.format

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of a table's init."""
        if not isinstance(self.source, TableStore):
            return {}
        return dict(self.source.attributes["init"].get("parameters", {}))

    def filler(self, layer: int, dim: int) -> Filler:
        """Return what reads the rows of `layer`."""

        def fill(first_row: int, out: NDArray[np.float32]) -> None:
            self.source.read(layer, first_row, out)

        return fill

    def stored(self) -> StoredReader | None:
        """Return what reads rows that are copied."""
        return None if self.kept is None else stored_reader(self.source, self.kept)

    def layer_scale(self, layer: int) -> NDArray[Any] | None:
        """Return the one scale of a layer whose rows are copied."""
        return None if self.kept is None else layer_scale(self.source, layer)

    def bound(self, layer: int, dim: int) -> float | None:
        """None: only the rows can tell."""
        return None

    def arrays(self, dim: int) -> list[ChunkedArray]:
        """Return the projections of a table, which its init's parameters refer to."""
        if not isinstance(self.source, TableStore):
            return []
        names = [projection_array(layer) for layer in self.source.layout.layer_ids]
        return [self.source.arrays[name] for name in names if name in self.source.arrays]

    def values(self, array: ChunkedArray) -> NDArray[Any]:
        """Read one of them."""
        return open_array(self.source.path, array).read(0, array.rows)


def conversion(
    source: RowSource,
    dtype: str,
    *,
    scale: float | None = None,
    chunk_rows: int | None = None,
    chunk_size: int | None = None,
    inner_size: int | None = None,
    copy: bool = False,
) -> TableSpec:
    """Return the table with the rows of `source` as `dtype`.

    Rows that have this dtype already are copied as they are stored, unless there is a `scale`. A
    table is only copied if `copy` says so.

    Raises InputError for a source without vectors or without some of its layers, for an unknown
    dtype, one that a table has already, or a scale that the dtype does not take.
    """
    is_table = isinstance(source, TableStore)
    if source.dim is None or source.dtype is None:
        raise InputError(f"{source.path} holds no vectors", "give a table or a bundle")
    if is_table and dtype == source.dtype and not copy:
        raise InputError(f"{source.path} is {dtype} already", "give another --dtype")
    missing = sorted(set(source.layout.layer_ids) - set(source.layers))
    if missing:
        raise InputError(
            f"{source.path} has no rows of layer {', '.join(map(str, missing))}",
            "a table has the rows of every layer of its layout",
        )
    digest = sampled_digest(source) if source.digest is None else source.digest
    about = {"dtype": source.dtype, "digest": digest}
    kept = dtype if scale is None and kept_dtype(source.dtype) == dtype else None
    return TableSpec(
        layout=source.layout,
        dim=source.dim,
        dtype=dtype,
        init=RowsOfSource(source=source, kept=kept),
        chunk_rows=chunk_rows,
        chunk_size=chunk_size,
        inner_size=inner_size,
        tokens=_tokens(source),
        scale=scale,
        source=about if is_table else {"format": source.format, **about},
    )


def _tokens(source: RowSource) -> int | None:
    """Return over how many tokens the hits were counted: each token is one hit of a column."""
    if not source.has_hits:
        return None
    if isinstance(source, TableStore):
        return int(source.attributes["statistics"]["tokens"])
    entry = source.layout.layers[0]
    return int(source.lines(entry.layer, HITS, 0, entry.moduli[0]).sum(dtype=np.int64))


def is_conversion(table: TableStore, spec: TableSpec) -> bool:
    """Return whether the finished `table` is what building the conversion `spec` would give.

    False where that cannot be told: a scale of a whole layer that is to be found.
    """
    asked = spec.attributes()
    names = asked.keys() - {"complete", "tool_version"}
    there = {name: table.attributes.get(name) for name in names}
    if canonical_json(there) != canonical_json({name: asked[name] for name in names}):
        return False
    if dict(table.arrays) != {array.name: array for array in spec.arrays}:
        return False
    if not spec.layer_scale_arrays:
        return True
    init = spec.init
    for layer in table.layout.layer_ids:
        wanted = None if spec.scale is None else np.array([spec.scale], dtype=np.float32)
        if wanted is None and isinstance(init, RowsOfSource):
            wanted = init.layer_scale(layer)
        if wanted is None or wanted[0] != table.lines(layer, SCALES, 0, 1)[0]:
            return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a layer's rows b differ from the rows a they stand for.

    `rmse`: root of the mean square of b - a over all values; `relative`: that over the root mean
    square of a. `cosine`: mean over rows of cos(a, b), rows of zeros in both counting as 1, in one
    as 0. `worst_row`: the row whose |b - a| / |a| is largest, `worst_relative` (a row of zeros that
    did not stay so is infinitely far); -1 where no row differs. `skipped`: rows not finite.
    """

    layer: int
    rows: int
    rmse: float
    relative: float
    cosine: float
    worst_row: int
    worst_relative: float
    skipped: int


def compare_tables(
    before: RowSource, after: RowSource, *, threads: int = 1, progress: Progress = SILENT
) -> tuple[Difference, ...]:
    """Return the difference of every layer of `after` from `before`, both read once in order.

    Raises MismatchError for tables of other layouts or widths, ArtifactError for what cannot be
    read.
    """
    if (before.layout.fingerprint, before.dim) != (after.layout.fingerprint, after.dim):
        raise MismatchError(
            f"{after.path} has another layout or width than {before.path}",
            "compare a table with one that was converted from it",
        )
    dim = before.dim or 1
    rows = {layer: before.layout.layer(layer).rows for layer in before.layers}
    progress.start("compare", sum(rows.values()), "rows")
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for layer, count in rows.items():
            total = _Sums()
            step = max(1, PIECE_BYTES // (4 * dim)) * _PIECES
            tasks = [(first, min(step, count - first)) for first in range(0, count, step)]
            parts = pool.map(lambda task, layer=layer: _sum(before, after, layer, *task), tasks)
            for (_, size), part in zip(tasks, parts, strict=True):
                total.add(part)
                progress.advance(size)
            found.append(total.difference(layer, count, dim))
    return tuple(found)


class _Sums:
    """The sums of some rows in order, and the worst row among them."""

    def __init__(self) -> None:
        self.size = self.error = self.cosine = 0.0
        self.worst, self.worst_row = 0.0, -1
        self.rows = 0

    def take(self, first: int, products: NDArray[np.float64]) -> None:
        """Add the products [n, 4] of rows from `first` on: a.a, b.b, a.b and |b - a|**2."""
        finite = np.isfinite(products)
        known = finite[:, 0] & finite[:, 1] & finite[:, 2] & finite[:, 3]
        aa, bb, ab, dd = np.where(known[:, None], products, 0).T
        self.rows += int(known.sum())
        self.size += float(aa.sum())
        self.error += float(dd.sum())
        both = np.sqrt(aa * bb)
        cosine = np.divide(ab, both, out=(aa == bb).astype(np.float64), where=both > 0)
        self.cosine += float(cosine[known].sum())
        far = np.divide(dd, aa, out=np.where(dd > 0, np.inf, 0.0), where=aa > 0)
        at = int(np.argmax(far))
        worst = float(far[at])
        if worst > self.worst:
            self.worst, self.worst_row = worst, first + at

    def add(self, later: _Sums) -> None:
        """Add the sums of rows that come after these."""
        self.size += later.size
        self.error += later.error
        self.cosine += later.cosine
        self.rows += later.rows
        if later.worst > self.worst:
            self.worst, self.worst_row = later.worst, later.worst_row

    def difference(self, layer: int, rows: int, dim: int) -> Difference:
        """Return the figures of a layer of `rows` rows."""
        known = max(self.rows, 1)
        return Difference(
            layer=layer,
            rows=rows,
            rmse=math.sqrt(self.error / (known * dim)),
            relative=math.sqrt(self.error / self.size) if self.size else 0.0,
            cosine=self.cosine / known,
            worst_row=self.worst_row,
            worst_relative=math.sqrt(self.worst),
            skipped=rows - self.rows,
        )


def _sum(before: RowSource, after: RowSource, layer: int, first: int, count: int) -> _Sums:
    sums, dim = _Sums(), before.dim or 1
    for begin, size in _pieces(first, count, dim):
        pair = [np.empty((size, dim), dtype=np.float32) for _ in range(2)]
        before.read(layer, begin, pair[0])
        after.read(layer, begin, pair[1])
        products = np.empty((size, 4), dtype=np.float64)
        kernels.row_products(pair[0], pair[1], products)
        sums.take(begin, products)
    return sums


def _pieces(first: int, count: int, dim: int) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE_BYTES // (4 * dim))
    for begin in range(first, first + count, step):
        yield begin, min(step, first + count - begin)
