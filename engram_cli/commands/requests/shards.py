"""The options of shards without headers, for every command that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from engram_cli.commands.requests.options import Option, Request
from engram_cli.errors import InputError
from engram_cli.formats.shard_shape import ShardShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions(Request):
    """The options of a `ShardShape`: all three or none."""

    PANEL = "Shards without headers"

    shards: Annotated[
        int | None,
        Option("Number of shards in a folder without bundle.json (EngramDB Store-I).", least=1),
    ] = None
    rows_per_shard: Annotated[int | None, Option("Rows of each of these shards.", least=1)] = None
    width: Annotated[int | None, Option("Bytes of each row of these shards.", least=1)] = None

    def resolved(self, given: Mapping[str, Any]) -> ShardShape | None:
        """Return the shape, or None where nothing is given. Raises InputError for a part of it."""
        if self.shards is None and self.rows_per_shard is None and self.width is None:
            return None
        if self.shards is None or self.rows_per_shard is None or self.width is None:
            raise InputError(
                "--shards, --rows-per-shard and --width go together", "give all three of them"
            )
        return ShardShape(shards=self.shards, rows_per_shard=self.rows_per_shard, width=self.width)
