"""Counts how a corpus uses the rows of a layout: row hits, n-gram samples, and statistics.

Every statistic is one module in `statistics/` and one line here. The order of the lines is the
order of its views on the terminal and on the page. `statistic` says what such a module holds.
`counting/` has the loop over the corpus and its kernels, `sampling/` the samples and estimates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engram_cli.registry import Registry

if TYPE_CHECKING:
    from engram_cli.stats.statistic import Statistic

DOCUMENT = "stats.json"  # of a statistics folder
STATISTICS: Registry[Statistic[Any]] = Registry(
    "statistic",
    {
        "orders": "engram_cli.stats.statistics.orders:ORDERS",
        "columns": "engram_cli.stats.statistics.collisions:COLUMNS",
        "clean_heads": "engram_cli.stats.statistics.clean_heads:CLEAN_HEADS",
        "growth": "engram_cli.stats.statistics.growth_view:GROWTH",
        "locality": "engram_cli.stats.statistics.locality:LOCALITY",
        "row_hits": "engram_cli.stats.statistics.row_hits:ROW_HITS",
        "sources": "engram_cli.stats.statistics.sources:SOURCES",
        "uncompressed": "engram_cli.stats.statistics.compare:UNCOMPRESSED",
        "top_ngrams": "engram_cli.stats.statistics.top_ngrams:TOP_NGRAMS",
        "worst_rows": "engram_cli.stats.statistics.worst_rows:WORST_ROWS",
    },
)
