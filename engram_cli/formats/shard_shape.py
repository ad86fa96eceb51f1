"""The shape of shards without headers, which only the caller knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardShape:
    """Shards that say nothing of themselves: how many, the rows of each, and the bytes of a row."""

    shards: int
    rows_per_shard: int
    width: int
