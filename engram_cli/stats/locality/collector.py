"""The collector of the locality: rows in, the section "locality" of stats.json out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import BaseCollector, RowObserver
from engram_cli.stats.holdout import Holdout, holdout_for
from engram_cli.stats.locality.hot import SHARES, HeldHits, order_hits, ranked
from engram_cli.stats.locality.lru import SAMPLED_ROWS, LruObserver
from engram_cli.stats.locality.windows import LENGTHS, SAMPLED_WINDOWS, WindowObserver
from engram_cli.stats.state import State, nested, numbered, part_of
from engram_cli.stats.token_chunk import TokenChunk
from engram_cli.stats.totals import Counts


class ColumnLocality:
    """Windows and caches of one column."""

    def __init__(self, rows: int, sampled_rows: int, windows: int) -> None:
        self.windows = [WindowObserver(length, windows) for length in LENGTHS]
        self.lru = LruObserver(rows, sampled_rows)

    def push_rows(self, rows: NDArray[np.uint32], chunk: TokenChunk) -> None:
        """Look at the rows of a chunk."""
        for window in self.windows:
            window.push_rows(rows, chunk)
        self.lru.push_rows(rows, chunk)

    def state(self) -> State:
        """Of windows and caches."""
        windows = numbered([window.state() for window in self.windows])
        return nested(windows=windows, lru=self.lru.state())

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        for index, window in enumerate(self.windows):
            window.restore(part_of(state, f"windows/{index}"))
        self.lru.restore(part_of(state, "lru"))

    def partial(self) -> State:
        """Of windows and caches."""
        windows = numbered([window.partial() for window in self.windows])
        return nested(windows=windows, lru=self.lru.partial())

    def absorb(self, state: State) -> None:
        """Take in a partial. Raises ArtifactError."""
        for index, window in enumerate(self.windows):
            window.absorb(part_of(state, f"windows/{index}"))
        self.lru.absorb(part_of(state, "lru"))


class Locality(BaseCollector):
    """Follows the first head of every order; the hot rows are those of all heads."""

    name = "locality"

    def __init__(
        self,
        layout: HashLayout,
        holdout: Holdout | None = None,
        *,
        sampled_rows: int = SAMPLED_ROWS,
        windows: int = SAMPLED_WINDOWS,
    ) -> None:
        """`sampled_rows` are followed of a column, `windows` kept of each length."""
        self._layout = layout
        self._holdout = holdout
        self._columns = {
            (entry.layer, order): ColumnLocality(
                entry.moduli[index * layout.heads], sampled_rows, windows
            )
            for entry in layout.layers
            for index, order in enumerate(layout.orders)
        }

    @property
    def memory(self) -> int:
        """The tables of the caches, the windows that have begun."""
        columns = self._columns.values()
        return sum(each.lru.memory for each in columns) + len(columns) * 12 * sum(LENGTHS)

    def row_observer(self, layer: int, order: int) -> RowObserver:
        """Every order is followed."""
        return self._columns[layer, order]

    @classmethod
    def blank_for(cls, layout: HashLayout, state: State) -> Locality:
        """One that can absorb a partial. Raises ArtifactError."""
        held = part_of(state, "holdout")
        return cls(layout, holdout_for(held) if held else None)

    def state(self) -> State:
        """Of every column; what is held out keeps its own."""
        return numbered([column.state() for column in self._columns.values()])

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        for index, column in enumerate(self._columns.values()):
            column.restore(part_of(state, index))

    def partial(self) -> State:
        """Of every column, and what was held out."""
        columns = numbered([column.partial() for column in self._columns.values()])
        held = {} if self._holdout is None else self._holdout.partial()
        return nested(columns=columns, holdout=held)

    def absorb(self, state: State) -> None:
        """Take in a partial. Raises ArtifactError, MismatchError for another --holdout."""
        held = part_of(state, "holdout")
        if bool(held) != (self._holdout is not None):
            raise MismatchError(
                "one part of the corpus has held-out look-ups, another none",
                "count all parts with the same --holdout",
            )
        if self._holdout is not None:
            self._holdout.absorb(held, self._layout.vocab_size)
        for index, column in enumerate(self._columns.values()):
            column.absorb(part_of(state, f"columns/{index}"))

    def section(self, counts: Counts) -> dict[str, Any]:
        """Hot rows, windows and caches by layer and order."""
        return {
            "hot": self._hot(counts),
            "windows": self._windows(),
            "lru": [
                {
                    "layer": layer,
                    "order": order,
                    "cache_rows": column.lru.cache_rows(),
                    "hit_rate": column.lru.hit_rates(),
                    "error": column.lru.errors(),
                }
                for (layer, order), column in self._columns.items()
            ],
            "held_out_tokens": 0 if self._holdout is None else self._holdout.tokens,
        }

    def _windows(self) -> list[dict[str, Any]]:
        found = []
        for (layer, order), column in self._columns.items():
            for window in column.windows:
                share = window.share()
                if share is not None:
                    entry = {"layer": layer, "order": order, "tokens": window.length}
                    found.append({**entry, "distinct_share": share[0], "error": share[1]})
        return found

    def _hot(self, counts: Counts) -> list[dict[str, Any]]:
        held = None
        if self._holdout is not None:
            ids, starts = self._holdout.sample()
            held = HeldHits(counts, ids, starts) if len(ids) else None
        shares = np.array(SHARES)
        found = []
        for layer in self._layout.layer_ids:
            for index, order in enumerate(self._layout.orders):
                ranking = ranked(order_hits(self._layout, counts.hits[layer], layer, index))
                own = (ranking.values * ranking.rows).astype(np.float64)
                entry: dict[str, Any] = {"layer": layer, "order": order, "held_out": None}
                if held is not None:
                    weights = held.weights(layer, index, ranking)
                    entry["held_out"] = ranking.caught(weights, shares)
                counted = ranking.caught(own, shares)
                found.append({**entry, "rows_share": list(SHARES), "counted": counted})
        return found
