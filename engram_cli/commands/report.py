"""report: a statistics folder in; one HTML page that opens offline out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engram_cli.commands.page_facts import counted_on, stored_facts
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.reading import ReportRequest
from engram_cli.progress import SILENT, Progress
from engram_cli.report.page import write_page
from engram_cli.report.place import check_page
from engram_cli.stats.results import statistics_page
from engram_cli.stats.stats_io import read_stats


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """The page that was written, and of what."""

    out: Path
    stats: Path
    bytes: int
    tokens: int
    fingerprint: str


def write_report(request: ReportRequest, progress: Progress = SILENT) -> ReportResult:
    """Draw a statistics folder as a page.

    Raises InputError, IncompleteError and ArtifactError as `read_stats` does, ArtifactError for
    damaged counters, samples or partials and for figures that cannot be drawn, OutputError.
    """
    request = located(request)
    check_page(request.out, request.force, inputs=(request.stats,), artifacts=(request.stats,))
    statistics = read_stats(request.stats)
    progress.start("checking counters", len(statistics.layout.layer_ids), "layers")
    for layer in statistics.layout.layer_ids:  # figures whose counts are damaged prove nothing
        statistics.hits(layer)
        progress.advance(1)
    statistics.samples()
    statistics.partials()
    page = statistics_page(statistics, (*stored_facts(statistics), *counted_on(statistics)))
    write_page(page, request.out, force=request.force)
    return ReportResult(
        out=request.out,
        stats=request.stats,
        bytes=request.out.stat().st_size,
        tokens=statistics.tokens,
        fingerprint=statistics.layout.fingerprint,
    )
