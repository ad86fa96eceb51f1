"""What a corpus says of rows: how often it reads them, and with which n-grams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import Companions, counted_by
from engram_cli.commands.patch_make.result import Predicted, ReadNgram
from engram_cli.errors import InputError
from engram_cli.progress import Progress
from engram_cli.rows.source import HITS, RowSource
from engram_cli.stats.names import Names

if TYPE_CHECKING:
    from engram_cli.stats.stats_io import Statistics

RowsByLayer = Mapping[int, NDArray[np.int64]]
_PIECE = 2**22  # hits that are read together


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The hits of all rows, in a corpus of so many `tokens`; `statistics` name the n-grams."""

    counted: RowSource
    tokens: int
    statistics: Statistics | None

    def hits(self, layer: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return uint64[...]: the look-ups of rows of a layer."""
        found = self.counted.hits_at(layer, rows.reshape(-1))
        return found.reshape(rows.shape).astype(np.uint64)

    def lookups(self, rows: RowsByLayer) -> int:
        """Return the look-ups of all of these rows."""
        return sum(int(self.hits(layer, own).sum()) for layer, own in rows.items())

    def per_million(self, lookups: int) -> float:
        """Return look-ups per million tokens of the corpus."""
        return 1e6 * lookups / max(self.tokens, 1)


def find_traffic(source: RowSource, companions: Companions, progress: Progress) -> Traffic | None:
    """Return what counted the rows of a bundle: its own hits, else statistics; None for neither.

    Raises as `Companions.statistics`.
    """
    statistics = companions.statistics(source.layout, progress)
    counted = counted_by(source, statistics)
    if counted is None:
        return None
    tokens = _tokens(counted) if statistics is None else statistics.tokens
    return Traffic(counted=counted, tokens=tokens, statistics=statistics)


def _tokens(counted: RowSource) -> int:
    """Return the tokens of a corpus from its hits: each is looked up once in a head."""
    entry = counted.layout.layer(counted.layers[0])
    first, end = entry.offsets[0], entry.offsets[0] + entry.moduli[0]
    return sum(
        int(counted.lines(entry.layer, HITS, at, min(_PIECE, end - at)).sum(dtype=np.uint64))
        for at in range(first, end, _PIECE)
    )


def predict(
    traffic: Traffic,
    rows: RowsByLayer,
    candidates: RowsByLayer,
    edited: Iterable[tuple[int, ...]],
    names: Names,
    limit: int,
) -> Predicted:
    """Return the look-ups of changed `rows`, and the n-grams behind up to `limit` of them.

    `edited`: the n-grams of the facts, as compressed ids.
    """
    lookups = traffic.lookups(rows)
    found = sorted(_ngrams(traffic, rows), key=lambda own: (-own.lookups, own.order, own.tokens))
    own = set(edited)
    listed = tuple(
        ReadNgram(
            order=len(each.tokens),
            text=names.ngram(np.array(each.tokens, dtype=np.int32)),
            tokens=each.tokens,
            count=each.count,
            exact=each.exact,
            rows=each.rows,
            lookups=each.lookups,
            edited=each.tokens in own,
        )
        for each in found[:limit]
    )
    statistics = traffic.statistics
    return Predicted(
        counted_by=Path(traffic.counted.path if statistics is None else statistics.path),
        tokens=traffic.tokens,
        lookups=lookups,
        per_million=traffic.per_million(lookups),
        candidates_per_million=traffic.per_million(traffic.lookups(candidates)),
        ngrams=listed,
        ngrams_known=len(found),
    )


@dataclass(slots=True, kw_only=True)
class _Met:
    """A known n-gram and the changed rows that it reads."""

    tokens: tuple[int, ...]
    order: int
    count: int
    exact: bool
    rows: int = 0

    @property
    def lookups(self) -> int:
        return self.count * self.rows


def _ngrams(traffic: Traffic, rows: RowsByLayer) -> list[_Met]:
    """Return the known n-grams on these rows."""
    if traffic.statistics is None:
        return []
    from engram_cli.stats.sampling.row_ngrams import load_row_ngrams

    def hits_at(layer: int, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        return traffic.counted.hits_at(layer, ids.reshape(-1)).reshape(ids.shape)

    layout = traffic.statistics.layout
    found: dict[tuple[int, ...], _Met] = {}
    for layer, own in rows.items():
        entry = layout.layer(layer)
        known = load_row_ngrams(traffic.statistics, entry, hits_at)
        for index, finder in enumerate(known):
            columns = range(index * layout.heads, (index + 1) * layout.heads)
            wanted = [_of_column(own, entry.offsets[c], entry.moduli[c]) for c in columns]
            for met in finder.on(wanted):
                for ngram in (each for on_row in met.values() for each in on_row):
                    tokens = tuple(finder.tokens[ngram.at].tolist())
                    at = found.setdefault(
                        tokens,
                        _Met(
                            tokens=tokens,
                            order=layout.orders[index],
                            count=ngram.count,
                            exact=ngram.exact,
                        ),
                    )
                    at.rows += 1
                    at.count = min(at.count, ngram.count)
    return list(found.values())


def _of_column(rows: NDArray[np.int64], first: int, height: int) -> NDArray[np.int64]:
    """Return the rows of a column, counted from its first."""
    return rows[(rows >= first) & (rows < first + height)] - first


def require_traffic(traffic: Traffic | None, most: float | None) -> None:
    """Raise InputError for a limit of traffic where none was counted."""
    if traffic is None and most is not None:
        raise InputError(
            "--max-traffic without statistics: nothing has counted the look-ups of rows",
            "give them with --stats (engram hash-stats counts a corpus)",
        )


def by_order(rows: RowsByLayer, source: RowSource) -> dict[int, int]:
    """Return how many of these rows are of each order."""
    layout, found = source.layout, dict.fromkeys(source.layout.orders, 0)
    for layer, own in rows.items():
        begins = np.array(layout.layer(layer).offsets)
        columns = np.searchsorted(begins, own, side="right") - 1
        for index, order in enumerate(layout.orders):
            found[order] += int(np.count_nonzero(columns // layout.heads == index))
    return found
