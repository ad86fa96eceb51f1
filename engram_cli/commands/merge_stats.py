"""hash-stats --merge: statistics of parts of a corpus in, the statistics of all of it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from engram_cli.commands.output_address import at_address, is_address
from engram_cli.commands.page_facts import merged_facts
from engram_cli.commands.requests.options import Request
from engram_cli.commands.statistics_folder import (
    StatisticsResult,
    check_statistics,
    sample_texts,
    write_statistics,
)
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.locate import locate
from engram_cli.stats.arrays import REMAKE
from engram_cli.stats.collector_set import read_collected
from engram_cli.stats.partial import Partial
from engram_cli.stats.results import all_results
from engram_cli.stats.sampling.text_ngrams import EXACT_OF
from engram_cli.stats.statistics.sources import Sources, TooManySources
from engram_cli.stats.stats_io import FIXED_KEYS, STATISTICS_FOLDER, Statistics, read_stats
from engram_cli.vocab.parquet import read_vocab


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeStatsRequest(Request):
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
class MergeStatsResult(StatisticsResult):
    """The results of the whole; `left_out`: the sections that not all parts have."""

    parts: tuple[Path, ...]
    left_out: tuple[str, ...]


def merge_stats(request: MergeStatsRequest, progress: Progress = SILENT) -> MergeStatsResult:
    """Merge statistics folders; the result is that of counting the whole in one go, to the byte,
    where the parts are whole partitions of it (`corpus.partitions`).

    Sections that not all parts have, or too many sources, are left out. Raises InputError,
    MismatchError for parts of two layouts, ArtifactError, OutputError.
    """
    if is_address(request.out):
        return at_address(
            merge_stats, request, STATISTICS_FOLDER, progress, folder=request.workspace.folder
        )
    out = request.out or request.workspace.stats
    vocab = locate(request.vocab or request.workspace.vocab)
    if len(request.parts) < 2:
        raise InputError(
            f"cannot merge {len(request.parts)} statistics folder", "give two folders or more"
        )
    request = replace(request, parts=tuple(map(locate, request.parts)))
    parts = [read_stats(path) for path in request.parts]
    _check_parts(parts)
    check_statistics(
        out,
        request.report,
        force=request.force,
        inputs=(*request.parts, vocab),
        artifacts=request.parts,
    )
    progress.start("merging", len(parts), "folders")
    whole, dropped = _merged(parts, progress)
    counts = whole.counts
    if counts.joined:
        progress.note(
            "documents were joined: n-grams that cross from one part into the next are missing"
        )
    read = read_vocab(vocab) if vocab.is_file() else None
    results = all_results(whole, lambda: read)
    corpus = _corpus(parts)
    left_out = sorted(
        {key for part in parts for key in part.document} - FIXED_KEYS - results.keys() | dropped
    )
    if left_out:
        progress.note(f"left out, because not all parts have them: {', '.join(left_out)}")
    written = write_statistics(
        counts,
        lambda: results,
        out,
        force=request.force,
        report=request.report,
        corpus=corpus,
        partials=whole.states(),
        texts=lambda: sample_texts(counts, read),
        facts=merged_facts(request.parts),
    )
    return MergeStatsResult(parts=request.parts, left_out=tuple(left_out), **written)


def _merged(parts: Sequence[Statistics], progress: Progress) -> tuple[Partial, set[str]]:
    """Return all parts as one, and the names of what does not merge.

    That is exact counting that one of them lacks, and sources that are too many together.
    """
    earlier = [part for part in parts if part.occurrences() is None]
    if earlier:
        progress.note(
            f"{earlier[0].path} has no sample of positions, since documents were removed or an "
            "earlier version counted it: the results by use come from the sample of n-grams, and "
            "the most frequent n-grams are left out; count it again for better results"
        )
    whole: Partial | None = None
    dropped: set[str] = set()
    for part in parts:
        try:
            other = partial_of(part)
            dropped |= _exact(other)
            whole = other if whole is None else merge_two(whole, other)
        except MismatchError as error:
            raise MismatchError(f"{part.path}: {error.message}", error.hint) from None
        except ArtifactError as error:
            raise ArtifactError(f"{part.path}: {error.message}", REMAKE) from None
        progress.advance(1)
    assert whole is not None
    return whole, dropped - _exact(whole)


def merge_two(one: Partial, two: Partial) -> Partial:
    """Return both parts as one; without the sources where they are too many together."""
    try:
        return one.merge(two)
    except TooManySources:
        kept = {name: state for name, state in one.collected.items() if name != Sources.name}
        return replace(one, collected=kept).merge(two)


def partial_of(part: Statistics) -> Partial:
    """Return all that a statistics folder keeps. Raises ArtifactError."""
    return Partial(counts=part.counts(), collected=read_collected(part.layout, part.partials()))


def _exact(partial: Partial) -> set[str]:
    return {"exact" for name in partial.collected if name.startswith(EXACT_OF)}


def _check_parts(parts: list[Statistics]) -> None:
    """Raise MismatchError naming the part that does not belong, InputError for one given twice."""
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
    """Return the sums of what is known of the corpora, such as their files."""
    sums: dict[str, int] = {}
    for part in parts:
        for name, value in part.document.get("corpus", {}).items():
            sums[name] = sums.get(name, 0) + int(value)
    return sums
