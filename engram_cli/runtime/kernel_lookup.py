"""The look-up of a call by kernels: rows of all layers, or vectors where one operator reads all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engram_cli.runtime import ops
from engram_cli.runtime.lookup_reference import look_back
from engram_cli.runtime.modules.base import MemoryModule, Rows, StoredRows
from engram_cli.runtime.reference import (
    HashedCall,
    HashTensors,
    before,
    compressed,
    is_hole,
    visible,
)
from engram_cli.runtime.sharding.trained.rows import ShardedRows
from engram_cli.runtime.tables import FLOATS, Table
from engram_cli.runtime.tiers import PlacedRows

if TYPE_CHECKING:
    from engram_cli.runtime.sharding.rows import ShardedTables


def look_up_call(
    hashed: HashTensors,
    ids: Tensor,
    recent: Tensor | None,
    dead: Tensor | None,
    age: Tensor | None,
    *,
    modules: Sequence[MemoryModule],
    shards: ShardedTables | None,
    has_holes: bool,
    is_given: bool,
) -> tuple[HashedCall, Tensor | None]:
    """Return what `ops.hash_call` does, and the vectors where a kernel looks up all of them.

    `modules`: those of all layers. `has_holes`: there are ids without a token. Rows are None with
    vectors, and where they were given with the call.
    """
    tokens = compressed(hashed, ids)
    if has_holes:
        holes = is_hole(tokens)
        dead = holes if dead is None else dead | holes
    older, carry = before(hashed, tokens, recent)
    seen = visible(hashed, tokens, carry, dead)
    if age is not None:
        seen = torch.minimum(seen, age + 1)
    rows = vectors = None
    if not is_given:
        back = look_back(older, carry, dead, age)
        tables = _tables(modules, ids.device)
        if shards is not None and _reads_at_once(modules, ids.device):
            vectors = ops.look_up_shards(hashed, ids, shards, back)
        elif tables is None:
            rows = ops.find_rows(hashed, ids, back)
        else:
            vectors = ops.look_up(hashed, ids, tables, back, _vector_dtype(modules, tables))
    return HashedCall(tokens=tokens, seen=seen, older=older, rows=rows), vectors


def _tables(modules: Sequence[MemoryModule], device: torch.device) -> list[Table] | None:
    """Return the layers' tables where one operator on `device` can look up all of them."""
    tables = []
    for rows in (module.multi_head_embedding.embedding for module in modules):
        if not isinstance(rows, (Rows, StoredRows)):  # placed elsewhere, or with an adapter
            return None
        if isinstance(rows, ShardedRows):
            return None
        if isinstance(rows, Rows) and type(rows.weight) is not nn.Parameter:  # quantised
            return None
        tables.append(rows.table())
    first = tables[0]
    for table in tables:
        if table.values.device != device or not table.is_like(first):
            return None
    return tables


def _reads_at_once(modules: Sequence[MemoryModule], device: torch.device) -> bool:
    """Return whether all layers' distributed rows are read on `device`."""
    rows = [module.multi_head_embedding.embedding for module in modules]
    return all(isinstance(own, PlacedRows) and own.device == device for own in rows)


def _vector_dtype(modules: Sequence[MemoryModule], tables: list[Table]) -> torch.dtype | None:
    """Return what quantised rows become: the dtype that all dense weights share, if any."""
    if not tables[0].row_type.quantised:
        return None
    dtypes = {module.anchor.dtype for module in modules}
    own = dtypes.pop()
    return own if not dtypes and own in FLOATS else torch.float32
