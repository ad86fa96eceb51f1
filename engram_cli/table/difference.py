"""How far two tables of one layout lie apart: two stores in, error figures a layer out.

Rows with a value that is not finite in either table are left out and counted. Sums are float64,
chunk by chunk and then in order, so that threads change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import MismatchError
from engram_cli.progress import SILENT, Progress
from engram_cli.table import kernels
from engram_cli.table.grid import row_array
from engram_cli.table.store import PIECE_BYTES, TableStore

_PIECES = 64  # pieces of a task


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
    before: TableStore, after: TableStore, *, threads: int = 1, progress: Progress = SILENT
) -> tuple[Difference, ...]:
    """The difference of every layer of `after` from `before`, both read once in order.

    Raises MismatchError for tables of other layouts or widths, ArtifactError for what cannot be
    read.
    """
    if (before.layout.fingerprint, before.dim) != (after.layout.fingerprint, after.dim):
        raise MismatchError(
            f"{after.path} has another layout or width than {before.path}",
            "compare a table with one that was converted from it",
        )
    rows = {layer: before.arrays[row_array(layer)].rows for layer in before.layout.layer_ids}
    progress.start("compare", sum(rows.values()), "rows")
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for layer, count in rows.items():
            total = _Sums()
            step = max(1, PIECE_BYTES // (4 * before.dim)) * _PIECES
            tasks = [(first, min(step, count - first)) for first in range(0, count, step)]
            parts = pool.map(lambda task, layer=layer: _sum(before, after, layer, *task), tasks)
            for (_, size), part in zip(tasks, parts, strict=True):
                total.add(part)
                progress.advance(size)
            found.append(total.difference(layer, count, before.dim))
    return tuple(found)


class _Sums:
    """The sums of some rows in order, and the worst row among them."""

    def __init__(self) -> None:
        self.size = self.error = self.cosine = 0.0
        self.worst, self.worst_row = 0.0, -1
        self.rows = 0

    def take(self, first: int, products: NDArray[np.float64]) -> None:
        """Take the products [n, 4] of rows from `first` on: a.a, b.b, a.b and |b - a|**2."""
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
        """Take the sums of rows that come after these."""
        self.size += later.size
        self.error += later.error
        self.cosine += later.cosine
        self.rows += later.rows
        if later.worst > self.worst:
            self.worst, self.worst_row = later.worst, later.worst_row

    def difference(self, layer: int, rows: int, dim: int) -> Difference:
        """The figures of a layer of `rows` rows."""
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


def _sum(before: TableStore, after: TableStore, layer: int, first: int, count: int) -> _Sums:
    sums = _Sums()
    for begin, size in _pieces(first, count, before.dim):
        pair = [np.empty((size, before.dim), dtype=np.float32) for _ in range(2)]
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
