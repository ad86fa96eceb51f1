"""The sections of a report, in the order they stand in: one file each, one line here.

A section is a function from the document (stats.json) to a `Section`, or to None when the document
does not hold what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engram_cli.registry import Registry
from engram_cli.report.markup import Html

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of a page: `lead` says in a sentence or two what to see in it."""

    title: str
    lead: str
    body: tuple[Html, ...]


Maker = Callable[[Document], Section | None]

SECTIONS: Registry[Maker] = Registry(
    "report section",
    {
        "overview": "engram_cli.report.sections.overview:overview",
        "occupancy": "engram_cli.report.sections.occupancy:occupancy",
        "clean-heads": "engram_cli.report.sections.clean_heads:clean_heads",
        "growth": "engram_cli.report.sections.growth:growth",
        "hot-set": "engram_cli.report.sections.locality:hot_set",
        "cache": "engram_cli.report.sections.locality:cache",
        "row-hits": "engram_cli.report.sections.row_hits:row_hits",
        "sources": "engram_cli.report.sections.sources:sources",
        "compression": "engram_cli.report.sections.compression:compression",
        "ngrams": "engram_cli.report.sections.ngrams:ngrams",
        "worst-rows": "engram_cli.report.sections.ngrams:worst_rows",
        "layout": "engram_cli.report.sections.layout:layout",
    },
)
