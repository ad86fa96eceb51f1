"""hash-stats --to: statistics and documents in; statistics with or without the documents out.

Added documents are merged, as `hash-stats --merge` merges. Removed ones are subtracted where that
is exact (`stats.removal`). What cannot be subtracted is left out, or counted again from the corpus
that remains, whose hits must then be those that the subtraction gave.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from engram_cli.commands.artifact import belongs
from engram_cli.commands.merge_stats import merge_two, partial_of
from engram_cli.commands.output_address import at_address, is_address
from engram_cli.commands.page_facts import updated_facts
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.update_stats import UpdateStatsRequest
from engram_cli.commands.statistics_folder import (
    StatisticsResult,
    check_statistics,
    sample_texts,
    write_statistics,
)
from engram_cli.commands.update_stats.passes import (
    ADD,
    RECOUNT,
    REMOVE,
    Pass,
    change_digest,
    clear_checkpoints,
    find_passes,
    held_out_share,
)
from engram_cli.engines.counting import Counted, resume_folder
from engram_cli.errors import InputError, MismatchError
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.malloc import trim
from engram_cli.outputs import clear_output
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.path import is_remote
from engram_cli.stats.collector_set import kept_states
from engram_cli.stats.counting.checkpoint import finished_request, note_finished
from engram_cli.stats.names import Names
from engram_cli.stats.partial import Partial
from engram_cli.stats.removal import FullCounters, remove
from engram_cli.stats.results import all_results, read_results, split_results
from engram_cli.stats.stats_io import FIXED_KEYS, STATISTICS_FOLDER, Statistics, read_stats
from engram_cli.stats.totals import FULL, Counts
from engram_cli.table.lock import build_lock
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import read_vocab


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStatsResult(StatisticsResult):
    """The results after the change, and what was changed.

    `to`: the statistics before. `sample_size`: of the n-gram samples. `left_out`: sections of `to`
    that could not be subtracted. `recounted`: all of it was counted again, and agreed. `repeated`:
    the same change had been finished by a run that was then killed, and nothing was done again.
    """

    to: Path
    added_tokens: int = 0
    added_documents: int = 0
    removed_tokens: int = 0
    removed_documents: int = 0
    sample_size: int
    left_out: tuple[str, ...] = ()
    recounted: bool = False
    repeated: bool = False
    seconds: float


def update_stats(request: UpdateStatsRequest, progress: Progress = SILENT) -> UpdateStatsResult:
    """Add documents to statistics or remove them; write the folder, return the results.

    Row hits, tokens, documents and the n-gram samples equal those of a count of the corpus with or
    without the documents. Raises as `hash_stats` does, and NeverCounted for documents to remove
    that are not in the statistics, MismatchError for another vocabulary, and for a corpus that is
    not what remains.
    """
    request = located(request)
    if is_address(request.out):
        return at_address(
            update_stats, request, STATISTICS_FOLDER, progress, folder=request.workspace.folder
        )
    if request.to is None:
        raise InputError("no statistics to change are named", "name them: --to engram-stats")
    begin = time.perf_counter()
    before = read_stats(request.to)
    _check_changeable(request, before)
    vocab = request.vocab or request.workspace.vocab
    out = _place(request, request.to)
    finished = finished_request(resume_folder(out), out)
    if finished is None:
        _check_output(request, request.to, out, vocab)
    with build_lock(resume_folder(out), out):
        before = read_stats(request.to)  # another run may have changed it until now
        _named(vocab, before.layout)
        trim()
        passes = find_passes(request, before, vocab, out, progress)
        done = change_digest(passes)
        if finished is not None and finished == done:
            progress.note(f"{out} has this change already: the run before this one was killed late")
            clear_output(out, STATISTICS_FOLDER)  # such as the statistics that it replaced
            clear_checkpoints(out)
            return _again(read_stats(out), request.to, time.perf_counter() - begin)
        if finished is not None:
            _check_output(request, request.to, out, vocab)
        result = _write_change(request, out, vocab, before, passes, done, progress)
        clear_checkpoints(out)
    return replace(result, seconds=time.perf_counter() - begin)


def _write_change(
    request: UpdateStatsRequest,
    out: Path,
    vocab: Path,
    before: Statistics,
    passes: Mapping[str, Pass],
    digest: str | None,
    progress: Progress,
) -> UpdateStatsResult:
    """Count the passes, change the statistics by them, write the folder `out`."""
    counted = {name: each.count(progress) for name, each in passes.items()}
    trim()
    read = _named(vocab, before.layout)
    whole = _changed(before, counted, Names(before.layout, read), progress)
    results = all_results(whole, lambda: read)
    left_out = tuple(sorted(before.document.keys() - FIXED_KEYS - results.keys()))
    _note_changes(before, whole.counts, left_out, progress)
    partials = kept_states(whole.states())
    if len(partials) < len(whole.collected):
        progress.note("too many n-grams to keep all: later changes will use samples of them")
    written = write_statistics(
        whole.counts,
        lambda: results,
        out,
        force=request.force or out == before.path,
        report=request.report,
        corpus=_corpus(before, passes, counted),
        partials=partials,
        texts=lambda: sample_texts(whole.counts, read),
        facts=updated_facts(request),
        finished=partial(note_finished, resume_folder(out), request=digest),
    )
    sums = {name: each.counts for name, each in counted.items()}
    return UpdateStatsResult(
        to=before.path,
        added_tokens=sums[ADD].tokens if ADD in sums else 0,
        added_documents=sums[ADD].documents if ADD in sums else 0,
        removed_tokens=sums[REMOVE].tokens if REMOVE in sums else 0,
        removed_documents=sums[REMOVE].documents if REMOVE in sums else 0,
        sample_size=whole.counts.samples[0].size,
        left_out=left_out,
        recounted=RECOUNT in sums,
        seconds=0.0,
        **written,
    )


def _check_changeable(request: UpdateStatsRequest, before: Statistics) -> None:
    """Raise InputError for options or statistics that do not allow the change."""
    given = (*request.geometry.given, *(["preset"] if request.preset is not None else []))
    if given:
        raise InputError(
            f"{before.path} has its own geometry ({', '.join(given)} was given)",
            "leave the geometry out",
        )
    if not request.remove:
        return
    why = None
    if before.joined:
        why = "its documents were joined, so n-grams cross from one into the next"
    elif held_out_share(before) is not None:
        why = "parts of files were held out, and which parts depends on the whole file"
    if why is not None:
        raise InputError(
            f"documents cannot be removed from {before.path}: {why}",
            "count the remaining corpus again: engram hash-stats CORPUS",
        )


def _place(request: UpdateStatsRequest, to: Path) -> Path:
    """Return the folder to write. Raises InputError."""
    if request.out is None and is_remote(to):
        raise InputError(
            f"{to} is behind an address, and is not changed there", "write a folder with --out"
        )
    out = request.out or to
    same = not is_remote(to) and os.path.realpath(out) == os.path.realpath(to)
    return to if same else out


def _check_output(request: UpdateStatsRequest, to: Path, out: Path, vocab: Path) -> None:
    """Raise OutputError for what may not be replaced or cannot be written."""
    check_statistics(
        out,
        request.report,
        force=request.force,
        inputs=[vocab, request.tokenizer, *([] if out == to else [to])],
        artifacts=(to,),
        replaces=out == to,
    )


def _named(vocab: Path, layout: HashLayout) -> CompressedVocab | None:
    """Return the vocabulary, None where there is none. Raises MismatchError for another one."""
    if not vocab.is_file():
        return None
    read = read_vocab(vocab)
    if not belongs(read, layout):
        raise MismatchError(
            f"{vocab} is {short(read.digest)}, and the statistics were counted with "
            f"{short(layout.vocab_digest)}",
            "give the vocabulary that they were counted with: --vocab",
        )
    return read


def _changed(
    before: Statistics, counted: Mapping[str, Counted], names: Names, progress: Progress
) -> Partial:
    """Return the statistics after the change. Raises as `update_stats`."""
    whole = partial_of(before)
    if ADD in counted:
        whole = merge_two(whole, counted[ADD].partial)
        if before.joined:
            progress.note(
                "documents were joined: n-grams that cross into the added ones are missing"
            )
    again = counted.get(RECOUNT)
    if REMOVE in counted:
        try:
            whole = remove(whole, counted[REMOVE].partial, names).partial
        except FullCounters as error:
            if again is None:
                raise
            progress.note(f"the recount is not checked: {error.message}")
            return again.partial
    if again is None:
        return whole
    _check_recount(whole.counts, again.counts)
    return again.partial


def _check_recount(left: Counts, again: Counts) -> None:
    """Raise MismatchError unless a corpus that was counted is what the change left."""
    hint = "give the whole corpus as it is after the change, or leave it out"
    for unit, expected, found in (
        ("documents", left.documents, again.documents),
        ("tokens", left.tokens, again.tokens),
    ):
        if expected != found:
            raise MismatchError(
                f"the corpus has {found:,} {unit}, and the change leaves {expected:,}", hint
            )
    for layer, hits in left.hits.items():
        differs = np.flatnonzero((hits != again.hits[layer]) & (hits != FULL))
        if len(differs):
            row = int(differs[0])
            raise MismatchError(
                f"row {row:,} of layer {layer} has {int(again.hits[layer][row]):,} hits in the "
                f"corpus, and the change leaves {int(hits[row]):,}",
                hint,
            )


def _note_changes(
    before: Statistics, after: Counts, left_out: tuple[str, ...], progress: Progress
) -> None:
    """Note what the statistics no longer have."""
    recount = "name the corpus as it is now to recount"
    if left_out:
        progress.note(
            f"left out, because documents cannot be subtracted: {', '.join(left_out)}; "
            f"{recount} them"
        )
    size, then = after.samples[0].size, int(before.document["samples"][0]["size"])
    if size < then:
        progress.note(
            f"samples: the {size:,} n-grams of each order that are known exactly, of {then:,}; "
            f"results by use come from them, with errors that are too small; {recount} both"
        )


def _corpus(
    before: Statistics, passes: Mapping[str, Pass], counted: Mapping[str, Counted]
) -> dict[str, int]:
    """Return the files that were counted; nothing where documents may be parts of files."""
    if REMOVE in passes and RECOUNT not in passes:
        return {}
    name = RECOUNT if RECOUNT in passes else ADD
    files = len({file.name for file in passes[name].work.plan.files})
    own = {"files": files, "empty_files": counted[name].empty_files}
    if name == RECOUNT:
        return own
    known = before.document.get("corpus") or {}
    return {key: int(known[key]) + value for key, value in own.items() if key in known}


def _again(there: Statistics, to: Path, seconds: float) -> UpdateStatsResult:
    """Return the results of a change that was finished before."""
    corpus = there.document.get("corpus") or {}
    return UpdateStatsResult(
        out=there.path,
        scheme=there.layout.scheme,
        fingerprint=there.layout.fingerprint,
        layers=there.layout.layer_ids,
        files=int(corpus.get("files", 0)),
        empty_files=int(corpus.get("empty_files", 0)),
        documents=there.documents,
        tokens=there.tokens,
        join_documents=there.joined,
        **split_results(read_results(there)),
        to=to,
        sample_size=int(there.document["samples"][0]["size"]),
        repeated=True,
        seconds=seconds,
    )
