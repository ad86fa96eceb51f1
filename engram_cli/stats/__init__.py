"""Counts how a corpus uses the rows of a layout: row hits, n-gram samples, and statistics.

Every statistic is one module and one line here. The order of the lines is the order of its views on
the terminal and on the page. `stats/statistic.py` says what such a module holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engram_cli.registry import Registry

if TYPE_CHECKING:
    from engram_cli.stats.statistic import Statistic

STATISTICS: Registry[Statistic[Any]] = Registry(
    "statistic",
    {
        "orders": "engram_cli.stats.orders:ORDERS",
        "columns": "engram_cli.stats.collisions:COLUMNS",
        "clean_heads": "engram_cli.stats.clean_heads:CLEAN_HEADS",
        "growth": "engram_cli.stats.growth_view:GROWTH",
        "locality": "engram_cli.stats.locality_view:LOCALITY",
        "row_hits": "engram_cli.stats.row_hits:ROW_HITS",
        "sources": "engram_cli.stats.sources:SOURCES",
        "uncompressed": "engram_cli.stats.compare:UNCOMPRESSED",
        "top_ngrams": "engram_cli.stats.top_ngrams:TOP_NGRAMS",
        "worst_rows": "engram_cli.stats.worst_rows:WORST_ROWS",
    },
)
