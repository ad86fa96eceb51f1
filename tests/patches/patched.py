"""Tables and patches of every dtype, for the tests of patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from table.tables import build, mapped_layout

from engram_cli.patches import Patch, make_patch
from engram_cli.rows import DTYPES
from engram_cli.table.store import TableStore, open_table

DIM = 33  # two blocks, the last of one value


def table(path: Path, dtype: str = "float32", **options: Any) -> TableStore:
    """A small table of two layers in chunks of 32 rows."""
    build(path, mapped_layout(), dtype=dtype, dim=DIM, **options)
    return open_table(path)


def patch_of(
    base: Any, rows: dict[int, list[int]] | None = None, seed: int = 0, **options: Any
) -> Patch:
    """A patch that gives some rows of `base` random values."""
    generator = np.random.default_rng(seed)
    first, last = base.layout.layer_ids[0], base.layout.layer_ids[-1]
    chosen = rows or {first: [0, 5, 31, 32, 105], last: [7, 64]}
    changed = {
        layer: (ids, (0.02 * generator.standard_normal((len(ids), base.dim))).astype(np.float32))
        for layer, ids in chosen.items()
    }
    return make_patch(base, changed, **options)


def same(one: Patch, two: Patch) -> bool:
    """Whether two patches do the same and say the same."""
    about = ("fingerprint", "dtype", "dim", "base", "base_format", "replaced", "description")
    return (
        one.digest == two.digest
        and all(getattr(one, name) == getattr(two, name) for name in about)
        and dict(one.facts) == dict(two.facts)
    )


ALL_DTYPES = tuple(DTYPES)
