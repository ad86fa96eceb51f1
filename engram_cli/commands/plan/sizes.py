"""Computes how many rows per head fit a budget, and which other tables have as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.rows import DTYPES
from engram_cli.table.planning.estimates import Demand, expect

_HEADS = (4, 8, 16)
_LEAST_DIM = 8
_TRIES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another shape of the same bytes; clean heads and occupancy are by order, as shares.

    `clean`: the share of its heads that an n-gram has for itself; `none_clean` of n-grams none.
    """

    heads: int
    dim: int
    dtype: str
    rows_per_head: int
    token_rows: int
    token_bytes: int
    occupied: tuple[float, ...]
    clean: tuple[float, ...]
    none_clean: tuple[float, ...]
    planned: bool


def fit_layout(base: HashLayout, rows: int, resolve: Callable[[int], HashLayout]) -> HashLayout:
    """The layout with the most rows a head whose rows are no more than `rows` in all.

    `resolve` makes a layout with a base size of rows a head; primes and padding lie above it, so
    it is asked for less until they fit. Raises InputError for a budget too small, LayoutError.
    """
    columns = len(base.layers) * base.columns
    size = rows // columns
    for _ in range(_TRIES):
        if size < 2:
            break
        layout = resolve(size)
        over = sum(entry.rows for entry in layout.layers) - rows
        if over <= 0:
            return layout
        size -= -(-over // columns)
    raise InputError(
        f"{rows:,} rows are too few for {columns} columns",
        "give a larger budget, fewer heads or layers, or narrower rows",
    )


def alternatives(
    layout: HashLayout, dim: int, dtype: str, budget: int, demands: tuple[Demand, ...]
) -> Iterator[Alternative]:
    """Heads, widths and dtypes for the same bytes of rows; sizes are before primes."""
    layers, orders = len(layout.layers), len(layout.orders)
    for heads, width, stored in _shapes(layout.heads, dim, dtype):
        row_bytes = DTYPES.load(stored).row_bytes(width)
        size = budget // (layers * orders * heads * row_bytes)
        if not 2 <= size <= 2**32:
            continue
        found = [expect(demand, [size] * heads) for demand in demands]
        yield Alternative(
            heads=heads,
            dim=width,
            dtype=stored,
            rows_per_head=size,
            token_rows=layers * orders * heads,
            token_bytes=layers * orders * heads * row_bytes,
            occupied=tuple(each.occupied for each in found),
            clean=tuple(each.clean / heads for each in found),
            none_clean=tuple(each.none_clean for each in found),
            planned=(heads, width, stored) == (layout.heads, dim, dtype),
        )


def _shapes(heads: int, dim: int, dtype: str) -> Iterator[tuple[int, int, str]]:
    """The planned shape first; other heads keep the width of an order, heads times width."""
    shapes = [(heads, dim, dtype)]
    shapes += [(other, heads * dim // other, dtype) for other in _HEADS]
    shapes += [(heads, dim // 2, dtype), (heads, dim * 2, dtype)]
    shapes += [(heads, dim, other) for other in DTYPES if DTYPES.load(other).suggested]
    met = set()
    for shape in shapes:
        if shape not in met and shape[1] >= min(_LEAST_DIM, dim):
            met.add(shape)
            yield shape
