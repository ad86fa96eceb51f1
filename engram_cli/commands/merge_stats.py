"""hash-stats --merge: statistics of parts of a corpus in, the statistics of all of it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engram_cli.commands.report import ReportRequest, report
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError, MismatchError
from engram_cli.files import refuse_existing
from engram_cli.progress import SILENT, Progress
from engram_cli.stats.collisions import ColumnStats, OrderStats
from engram_cli.stats.figures import figures
from engram_cli.stats.folder import FIXED_KEYS, Statistics, is_stats, read_stats, write_stats
from engram_cli.vocab.parquet import read_vocab


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeStatsRequest:
    """Which folders to merge: `parts`, two or more, of different parts of a corpus.

    `vocab`: gives the n-grams their texts. `vocab`, `out`: None for the names in `workspace`.
    `report`: a page to draw of the whole.
    """

    parts: tuple[Path, ...]
    workspace: Workspace = field(default_factory=Workspace)
    vocab: Path | None = None
    out: Path | None = None
    force: bool = False
    report: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeStatsResult:
    """The figures of the whole, as plain numbers; `left_out`: sections that do not merge."""

    out: Path
    parts: tuple[Path, ...]
    scheme: str
    fingerprint: str
    layers: tuple[int, ...]
    files: int
    empty_files: int
    documents: int
    tokens: int
    join_documents: bool
    left_out: tuple[str, ...]
    orders: tuple[OrderStats, ...]
    columns: tuple[ColumnStats, ...]
    sections: dict[str, Any]


def merge_stats(request: MergeStatsRequest, progress: Progress = SILENT) -> MergeStatsResult:
    """Merge statistics folders; the result is that of counting the whole in one go, to the byte.

    Documents that were joined across parts are the exception: n-grams do not run from one part into
    the next. Raises InputError, MismatchError for parts of two layouts, ArtifactError, OutputError.
    """
    out = request.out or request.workspace.stats
    vocab = request.vocab or request.workspace.vocab
    if len(request.parts) < 2:
        raise InputError(f"{len(request.parts)} statistics to merge", "give two folders or more")
    refuse_existing(out, request.force, is_stats, "statistics folder")
    if request.report is not None:
        refuse_existing(request.report, request.force)
    parts = [read_stats(path) for path in request.parts]
    _check_parts(parts)
    progress.start("merging", len(parts), "folders")
    counts = parts[0].counts()
    progress.advance(1)
    for part in parts[1:]:
        counts = counts.merge(part.counts())
        progress.advance(1)
    if counts.joined:
        progress.note("documents were joined: n-grams that run from one part into the next miss")
    found = figures(counts, read_vocab(vocab) if vocab.is_file() else None)
    left_out = sorted({k for p in parts for k in p.document} - FIXED_KEYS - found.sections.keys())
    if left_out:
        progress.note(f"left out, since they do not merge: {', '.join(left_out)}")
    corpus = _corpus(parts)
    write_stats(
        counts,
        found.orders,
        found.columns,
        out,
        corpus=corpus,
        sections=found.sections,
        force=request.force,
    )
    if request.report is not None:
        report(ReportRequest(stats=out, out=request.report, force=request.force))
    return MergeStatsResult(
        out=out,
        parts=request.parts,
        scheme=counts.layout.scheme,
        fingerprint=counts.layout.fingerprint,
        layers=counts.layout.layer_ids,
        files=corpus.get("files", 0),
        empty_files=corpus.get("empty_files", 0),
        documents=counts.documents,
        tokens=counts.tokens,
        join_documents=counts.joined,
        left_out=tuple(left_out),
        orders=found.orders,
        columns=found.columns,
        sections=found.sections,
    )


def _check_parts(parts: list[Statistics]) -> None:
    """Raises MismatchError naming the part that does not belong, InputError for one given twice."""
    first = parts[0]
    met: set[Path] = set()
    for part in parts:
        if part.path.resolve() in met:
            raise InputError(f"{part.path} is given twice", "name each part once")
        met.add(part.path.resolve())
        if part.layout.fingerprint != first.layout.fingerprint or part.joined != first.joined:
            raise MismatchError(
                f"{part.path} was counted with another layout than {first.path}",
                "count all parts with the same vocabulary, geometry and --join-documents",
            )


def _corpus(parts: list[Statistics]) -> dict[str, int]:
    """The figures of the corpora themselves, such as their files, summed."""
    sums: dict[str, int] = {}
    for part in parts:
        for name, value in part.document.get("corpus", {}).items():
            sums[name] = sums.get(name, 0) + int(value)
    return sums
