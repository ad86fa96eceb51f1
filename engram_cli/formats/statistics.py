"""A statistics folder as a `RowSource`: hits of every row, and no vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.formats.base import Checks, Facts, Format, hash_facts, stored_size
from engram_cli.rows.gather import FileRows
from engram_cli.rows.source import HITS
from engram_cli.stats import DOCUMENT, STATISTICS

if TYPE_CHECKING:
    from engram_cli.stats.stats_io import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsRows(FileRows):
    """The hits of statistics. They are compressed, so a layer is read once and kept in memory."""

    statistics: Statistics
    _hits: dict[int, NDArray[np.uint32]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_hits(self) -> bool:
        """True: statistics are counts of look-ups."""
        return True

    def lines(self, layer: int | None, part: str, first: int, count: int) -> NDArray[Any]:
        """Return the hits of `count` rows from `first` on. Raises InputError, ArtifactError."""
        if part != HITS:
            self._array(layer, part)  # raises
        return self._of(layer)[first : first + count]

    def hits_at(self, layer: int | None, ids: ArrayLike) -> NDArray[np.uint32]:
        """Return the hits of the rows at `ids`. Raises ArtifactError."""
        hits: NDArray[np.uint32] = self._of(layer)[np.asarray(ids)]
        return hits

    def _of(self, layer: int | None) -> NDArray[np.uint32]:
        number = self.layout.layer(layer).layer
        if number not in self._hits:
            self._hits[number] = self.statistics.hits(number)
        return self._hits[number]


def statistics_rows(statistics: Statistics) -> StatisticsRows:
    """Return opened statistics as a `RowSource`."""
    return StatisticsRows(
        format="statistics",
        path=statistics.path,
        layout=statistics.layout,
        layers=statistics.layout.layer_ids,
        statistics=statistics,
    )


def _open(path: Path) -> StatisticsRows:
    from engram_cli.stats.stats_io import read_stats  # with the kernels of counting

    return statistics_rows(read_stats(path))


def _facts(source: StatisticsRows) -> Facts:
    statistics, document = source.statistics, source.statistics.document
    joined = ", joined to one stream" if statistics.joined else ""
    orders = [
        (
            f"{entry['order']}-grams",
            f"{entry['distinct']:,.0f} distinct ones, "
            + ("counted" if entry["exact"] else f"± {entry['distinct_error']:,.0f}"),
        )
        for entry in document["orders"]
    ]
    return [
        *hash_facts(statistics.layout),
        ("counted", f"{statistics.tokens:,} tokens, {statistics.documents:,} documents{joined}"),
        ("statistics", ", ".join(name for name in STATISTICS if name in document)),
        ("made by", f"engram {document.get('tool_version')}"),
        *orders,
    ]


def _check(path: Path, checks: Checks) -> StatisticsRows:
    """Open it: verify computes hits, samples and figures again."""
    checks.files, checks.stored_bytes = stored_size(path)
    return _open(path)


FORMAT = Format(
    name="statistics",
    recognise=lambda path: path if (path / DOCUMENT).is_file() else None,
    open=_open,
    facts=_facts,
    check=_check,
)
