"""The collector of the growth: chunks in, the section "growth" of stats.json out."""

from __future__ import annotations

from typing import Any

import numpy as np

from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.collector import BaseCollector, NgramObserver, RowObserver
from engram_cli.stats.distinct import table_entries
from engram_cli.stats.growth.arrivals import (
    BINS,
    MOST_ROWS,
    ArrivalSampler,
    NgramArrivals,
    RowArrivals,
)
from engram_cli.stats.growth.curve import Curve
from engram_cli.stats.growth.partial import GrowthPartial, followed, read_partial
from engram_cli.stats.state import State, nested, numbered, part_of, take_into
from engram_cli.stats.token_chunk import TokenChunk
from engram_cli.stats.totals import Counts

DEFAULT_SIZE = 2**14
_BIN_SHIFT = np.uint64(64 - BINS.bit_length() + 1)


class Growth(BaseCollector):
    """Follows the first arrivals of n-grams, and of the rows of each order's first head."""

    name = "growth"

    def __init__(self, layout: HashLayout, size: int = DEFAULT_SIZE) -> None:
        """`size`: n-grams followed of each order."""
        self._layout = layout
        self._size = size
        self._samplers = [ArrivalSampler(size) for _ in layout.orders]
        self._met: tuple[NgramArrivals, ...] = ()  # what was merged
        self._tokens = np.zeros(BINS, dtype=np.int64)
        self._rows: dict[tuple[int, int], RowArrivals] = {
            (entry.layer, order): RowArrivals(entry.moduli[index * layout.heads])
            for entry in layout.layers
            for index, order in enumerate(layout.orders)
        }

    @property
    def memory(self) -> int:
        """Tables, copies of them while a threshold is lowered, arrivals of rows."""
        one = 16 * table_entries(self._size) + 3 * 24 * self._size
        return one * len(self._samplers) + 8 * min(MOST_ROWS, 2**16) * len(self._rows)

    def push(self, chunk: TokenChunk) -> None:
        """Note when the tokens of a chunk arrive."""
        segments = chunk.segments
        lengths = np.diff(segments.begins, append=len(chunk))
        np.add.at(self._tokens, (segments.keys >> _BIN_SHIFT).astype(np.int64), lengths)

    def ngram_observer(self, order: int) -> NgramObserver:
        """The n-grams of every order are followed."""
        return self._samplers[self._layout.orders.index(order)]

    def row_observer(self, layer: int, order: int) -> RowObserver:
        """The rows of every order are followed."""
        return self._rows[layer, order]

    def merge(self, other: Growth) -> Growth:
        """The growth of both corpora. Raises MismatchError."""
        both = Growth(self._layout, self._size)
        both._tokens = self._tokens + other._tokens
        both._met = tuple(
            one.merge(two) for one, two in zip(self.samples(), other.samples(), strict=True)
        )
        both._rows = {key: rows.merge(other._rows[key]) for key, rows in self._rows.items()}
        return both

    @classmethod
    def blank_for(cls, layout: HashLayout, state: State) -> Growth:
        """One that can absorb a partial. Raises ArtifactError."""
        return cls(layout, followed(state))

    def partial(self) -> State:
        """The n-grams and rows with their least arrivals."""
        rows = tuple(column.arrivals for column in self._rows.values())
        return GrowthPartial(tokens=self._tokens, ngrams=self.samples(), rows=rows).state()

    def absorb(self, state: State) -> None:
        """Take in a partial; nothing is pushed afterwards. Raises ArtifactError, MismatchError."""
        columns = list(self._rows.values())
        other = read_partial(
            state, len(self._samplers), [len(column.arrivals) for column in columns]
        )
        self._met = tuple(
            one.merge(two) for one, two in zip(self.samples(), other.ngrams, strict=True)
        )
        self._tokens = self._tokens + other.tokens
        for column, arrivals in zip(columns, other.rows, strict=True):
            np.minimum(column.arrivals, arrivals, out=column.arrivals)

    def samples(self) -> tuple[NgramArrivals, ...]:
        """The n-grams followed of each order."""
        return self._met or tuple(sampler.sample() for sampler in self._samplers)

    def state(self) -> State:
        """Of the samplers, the tokens by arrival and the rows."""
        samplers = numbered([sampler.state() for sampler in self._samplers])
        rows = numbered([column.state() for column in self._rows.values()])
        return nested(samplers=samplers, rows=rows) | {"tokens": self._tokens}

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        for index, sampler in enumerate(self._samplers):
            sampler.restore(part_of(state, f"samplers/{index}"))
        for index, column in enumerate(self._rows.values()):
            column.restore(part_of(state, f"rows/{index}"))
        take_into(state, "tokens", self._tokens)

    def section(self, counts: Counts | None = None) -> list[dict[str, Any]]:
        """The curve of each order and where it leads."""
        return [
            Curve(
                order=order,
                tokens=self._tokens,
                ngrams=sample,
                rows={layer: self._rows[layer, order] for layer in self._layout.layer_ids},
            ).section()
            for order, sample in zip(self._layout.orders, self.samples(), strict=True)
        ]
