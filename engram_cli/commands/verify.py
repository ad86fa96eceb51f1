"""verify: an artifact in; all of it that can be computed again, held against what it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engram_cli.commands.artifact import Companions, Kind, find_artifact
from engram_cli.commands.recompute_layout import layout_problem, recomputed
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify_stats import stats_problems
from engram_cli.commands.verify_vocab import vocab_problems
from engram_cli.errors import ArtifactError, InputError, MismatchError
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_files import verify_files
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.progress import SILENT, Progress
from engram_cli.sizes import processors
from engram_cli.stats.stats_io import Statistics, read_stats
from engram_cli.table.store import TableStore, open_table
from engram_cli.table.verify import verify_table
from engram_cli.vocab.parquet import read_about


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What was checked, what could not be, and a line for each thing that is wrong."""

    path: Path
    kind: Kind
    ok: bool
    checked: tuple[str, ...]
    not_checked: tuple[str, ...]
    problems: tuple[str, ...]
    files: int
    stored_bytes: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Findings:
    """What a verification has met so far."""

    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: int = 0
    stored_bytes: int = 0

    def take(self, what: str, problems: list[str]) -> None:
        """Note that `what` was checked, and what is wrong with it."""
        self.problems += problems
        if not problems:
            self.checked.append(what)


def verify(request: VerifyRequest, progress: Progress = SILENT) -> VerifyResult:
    """Read an artifact again and compare it with its checksums, its scheme and its counts.

    What is wrong is in `problems`. Raises InputError if no file written by engram is at the path,
    and for given statistics or a vocabulary that do not belong to it.
    """
    begin = time.perf_counter()
    artifact = find_artifact(request.path)
    found = _Findings()
    companions = Companions(
        artifact=artifact.path, folder=request.folder, stats=request.stats, vocab=request.vocab
    )
    try:
        _VERIFIERS[artifact.kind](artifact.path, request, companions, found, progress)
    except ArtifactError as error:
        found.problems.append(error.message)
    return VerifyResult(
        path=artifact.path,
        kind=artifact.kind,
        ok=not found.problems,
        checked=tuple(found.checked),
        not_checked=tuple(found.not_checked),
        problems=tuple(found.problems),
        files=found.files,
        stored_bytes=found.stored_bytes,
        seconds=time.perf_counter() - begin,
    )


def _table(
    path: Path,
    request: VerifyRequest,
    companions: Companions,
    found: _Findings,
    progress: Progress,
) -> None:
    checksums = verify_table(path, threads=request.threads or processors(), progress=progress)
    found.files, found.stored_bytes = checksums.files, checksums.stored_bytes
    found.take("checksums", list(checksums.problems))
    if checksums.problems:
        found.not_checked.append("layout and counts: the files were changed or damaged")
        return
    table = open_table(path)
    _layout(table.layout, found)
    _vocabulary(table.layout, companions, found)
    statistics = companions.statistics(table.layout, progress)
    if statistics is not None:
        found.take("counts", _count_problems(table, statistics))
    elif table.attributes["statistics"] is not None:
        found.not_checked.append("counts: the statistics they came from were not found")


def _count_problems(table: TableStore, statistics: Statistics) -> list[str]:
    """Return where the hits stored with the rows differ from the statistics."""
    problems = []
    for layer in table.layout.layer_ids:
        own, counted = table.hits(layer), statistics.hits(layer)
        if own is None:
            return ["the table has no counts to compare with the given statistics"]
        different = own != counted
        if different.any():
            first = int(np.argmax(different))
            problems.append(
                f"layer {layer}: {int(np.count_nonzero(different)):,} rows have other hits than "
                f"{statistics.path} says, the first is row {first:,}: {own[first]:,}, not "
                f"{counted[first]:,}"
            )
    tokens = table.attributes["statistics"]["tokens"]
    if tokens != statistics.tokens:
        problems.append(f"counted over {tokens:,} tokens, not {statistics.tokens:,}")
    return problems


def _bundle(
    path: Path,
    request: VerifyRequest,
    companions: Companions,
    found: _Findings,
    progress: Progress,
) -> None:
    digests = verify_files(path, threads=request.threads or processors(), progress=progress)
    found.files, found.stored_bytes = digests.files, digests.stored_bytes
    found.take("digests", list(digests.problems))
    if digests.problems:
        found.not_checked.append("headers and layout: the files were changed or damaged")
        return
    try:
        bundle = read_bundle(path)
    except (InputError, MismatchError) as error:  # of the table that it refers to
        found.problems.append(error.message)
        return
    found.checked.append("headers")
    if bundle.table is not None:
        _referred(bundle.table, request, found, progress)
    _layout(bundle.spec.layout, found)
    _vocabulary(bundle.spec.layout, companions, found)


def _referred(table: Path, request: VerifyRequest, found: _Findings, progress: Progress) -> None:
    """The table that a bundle refers to, of which `read_bundle` has seen that it is the one."""
    checksums = verify_table(table, threads=request.threads or processors(), progress=progress)
    found.files += checksums.files
    found.stored_bytes += checksums.stored_bytes
    found.take("the table", [f"the table's {problem}" for problem in checksums.problems])


def _vocab(
    path: Path,
    request: VerifyRequest,
    companions: Companions,
    found: _Findings,
    progress: Progress,
) -> None:
    found.files, found.stored_bytes = 1, path.stat().st_size
    checked, not_checked, problems = vocab_problems(path, request.tokenizer)
    found.checked += checked
    found.not_checked += not_checked
    found.problems += problems


def _statistics(
    path: Path,
    request: VerifyRequest,
    companions: Companions,
    found: _Findings,
    progress: Progress,
) -> None:
    files = [file for file in path.rglob("*") if file.is_file()]
    found.files, found.stored_bytes = len(files), sum(file.stat().st_size for file in files)
    statistics = read_stats(path)
    vocab = companions.vocabulary(statistics.layout, progress)
    problems, left = stats_problems(statistics, vocab, progress)
    found.take("hits, sample and figures", problems)
    found.not_checked += left
    _layout(statistics.layout, found)
    _vocabulary(statistics.layout, companions, found)


def _layout(layout: HashLayout, found: _Findings) -> None:
    again = recomputed(layout)
    if isinstance(again, str):
        found.not_checked.append(f"layout: {again}")
        return
    problem = layout_problem(layout, again)
    found.take("layout", [] if problem is None else [problem])


def _vocabulary(layout: HashLayout, companions: Companions, found: _Findings) -> None:
    """Compare the digest of the vocabulary with a given file, or one next to it."""
    place = companions.vocabulary_place()
    if place is None or layout.vocab_digest is None:
        if companions.vocab is not None:
            raise InputError(f"the layout of {companions.artifact} has no vocabulary",
                             "leave --vocab out")  # fmt: skip
        return
    digest = read_about(place).get("vocab_digest")
    if digest != layout.vocab_digest:
        line = f"{place} is {short(digest)}, the layout was made for {short(layout.vocab_digest)}"
        if companions.vocab is not None:
            found.problems.append(line)
        else:
            found.not_checked.append(f"vocabulary: {line}")
        return
    found.checked.append("vocabulary")


_Verifier = Callable[[Path, VerifyRequest, Companions, _Findings, Progress], None]
_VERIFIERS: dict[Kind, _Verifier] = {
    Kind.TABLE: _table,
    Kind.BUNDLE: _bundle,
    Kind.VOCABULARY: _vocab,
    Kind.STATISTICS: _statistics,
}
