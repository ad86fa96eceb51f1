"""hash-stats: a corpus and a geometry in; row hits, collisions and a statistics folder out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engram_cli.commands.checkpoint import for_checkpoint
from engram_cli.commands.corpus_tokenizer import note_layout, tokenizer_file
from engram_cli.commands.geometry import with_preset
from engram_cli.commands.output_address import at_address, is_address
from engram_cli.commands.page_facts import Facts, counted_facts
from engram_cli.commands.requests.corpus import HashStatsRequest
from engram_cli.commands.requests.options import located
from engram_cli.commands.statistics_folder import (
    StatisticsResult,
    check_statistics,
    sample_texts,
    write_statistics,
)
from engram_cli.corpus.checks import (
    check_field,
    check_labelled,
    check_names,
    idle_options,
    needs_tokenizer,
    remarks,
)
from engram_cli.corpus.encode import FastLoader, check_encoder, wants_fast
from engram_cli.corpus.partitions import Plan, plan_partitions
from engram_cli.corpus.sources import Sources, find_sources
from engram_cli.corpus.stamps import Stamps, check_companions, stamps_of
from engram_cli.engines.base import ENGINES, Reading, request_fingerprint
from engram_cli.engines.counting import Counted, Running, Work, count, resume_folder
from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.malloc import trim
from engram_cli.numbers import bytes_text, counted
from engram_cli.progress import SILENT, Progress
from engram_cli.sizes import available_memory, processors
from engram_cli.stats.collector_set import (
    exact_memory,
    kept_states,
    make_collectors,
    sources_of,
)
from engram_cli.stats.counting.checkpoint import clear_finished, note_finished, remove_checkpoint
from engram_cli.stats.counting.memory import MemoryPlan, check_memory, plan_memory
from engram_cli.stats.results import all_results
from engram_cli.stats.statistic import CollectorOptions
from engram_cli.stats.statistics.overlap import SourcesResult
from engram_cli.stats.stats_io import STATISTICS_FOLDER
from engram_cli.table.lock import build_lock, clear_lock
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import read_vocab
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer

# The fields of a request that decide the figures, with layout, corpus and tokenizer.
_DECISIVE = (
    *("join_documents", "sample_size", "exact", "compare_uncompressed", "group_by"),
    *("locality", "holdout", "growth", "partition_size"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashStatsResult(StatisticsResult):
    """What was counted, and how.

    `bytes` is None if a source is a pipe; `tokenizer` is None if no file holds text; `encoder` is
    the package that was encoding at the end. `resumed_tokens`: counted by runs that were
    interrupted; `seconds` are those of this run. `empty_documents`: texts of no characters, in
    files that hold others, which are not among the `documents`. These are not in the statistics
    folder.
    """

    bytes: int | None
    tokenizer: Path | None
    encoder: str | None
    memory_bytes: int
    seconds: float
    resumed_tokens: int = 0
    empty_documents: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second, from the first byte read to the last row counted."""
        return (self.tokens - self.resumed_tokens) / self.seconds if self.seconds > 0 else 0.0


def hash_stats(request: HashStatsRequest, progress: Progress = SILENT) -> HashStatsResult:
    """Count the rows that a corpus looks up, write the statistics folder, return the results.

    Raises CorpusError and TokenIdError naming the file and the place, MismatchError for a tokenizer
    that is not the vocabulary's, InputError when memory does not suffice, OutputError.
    """
    request = located(request)
    if is_address(request.out):
        return at_address(
            hash_stats, request, STATISTICS_FOLDER, progress, folder=request.workspace.folder
        )
    here = request.workspace
    vocab, out = request.vocab or here.vocab, request.out or here.stats
    asked = request
    geometry = with_preset(request.preset, request.geometry)
    geometry = for_checkpoint(geometry, here.folder, vocab, progress)
    request = replace(request, geometry=geometry, preset=None)
    work, running, stamps = prepare(request, vocab, out, progress)
    with build_lock(running.checkpoints, out):
        trim()  # a tokenizer leaves 30 MB where its file was parsed
        opened = ENGINES.load(request.engine)(request.ray_address, work.reading.threads, progress)
        with opened as engine:
            counted = count(engine, work, running, progress)
        check_companions(work.plan.files, request.corpus, stamps)
        plan, tokenizer = work.plan, work.reading.tokenizer_path
        del work  # the tokenizer takes a hundred megabytes, and the results some more
        trim()
        facts = counted_facts(asked, tokenizer)
        finished = partial(note_finished, running.checkpoints)
        written = _write(counted, plan, vocab, out, request, facts, finished, progress)
        remove_checkpoint(running.checkpoints)
    return HashStatsResult(
        bytes=plan.size,
        tokenizer=tokenizer,
        encoder=counted.encoder,
        memory_bytes=running.memory.total,
        seconds=counted.seconds,
        resumed_tokens=counted.resumed_tokens,
        empty_documents=counted.empty_documents,
        **written,
    )


def _read(vocab: Path) -> CompressedVocab | None:
    """Return the vocabulary, None without one; of 87 MB that reading it takes, 61 are let go."""
    found = read_vocab(vocab) if vocab.is_file() else None
    trim()
    return found


def _write(
    counted: Counted,
    plan: Plan,
    vocab: Path,
    out: Path,
    request: HashStatsRequest,
    facts: Facts,
    finished: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Compute the results and write them; see `write_statistics`."""
    whole = counted.partial

    def results() -> Mapping[str, object]:
        found = all_results(whole, read.result)
        sources = found.get("sources")
        if isinstance(sources, SourcesResult):
            check_names(sources.names, plan.files, request.corpus)
        return found

    partials = kept_states(whole.states())
    if len(partials) < len(whole.collected):
        progress.note("too many n-grams to keep all: --merge will use samples of them")
    files = len({file.name for file in plan.files})
    with ThreadPoolExecutor(1) as pool:  # while the first files are written
        read = pool.submit(_read, vocab)
        return write_statistics(
            whole.counts,
            results,
            out,
            force=request.force,
            report=request.report,
            corpus={"files": files, "empty_files": counted.empty_files},
            partials=partials,
            texts=lambda: sample_texts(whole.counts, read.result()),
            facts=facts,
            finished=finished,
        )


def prepare(
    request: HashStatsRequest,
    vocab: Path,
    out: Path,
    progress: Progress,
    layout: HashLayout | None = None,
) -> tuple[Work, Running, Stamps | None]:
    """Settle everything before the corpus is read, and note what was chosen.

    What is wrong with the options is reported before what is in the way of the output. `layout`:
    that of statistics which the counts change, None for the layout of the request. If one is given,
    `out` only says where checkpoints lie.
    """
    check_encoder(request.encoder)
    sources = find_sources(request.sources, request.corpus)
    check_labelled(sources.files, request.corpus)
    given, layout = layout is not None, layout or request.geometry.resolve(vocab)
    _check_fold(layout)
    if not given:
        note_layout(layout, vocab, progress)
    text = needs_tokenizer(sources.files, request.corpus)
    plan = plan_partitions(sources.files, request.corpus, request.partition_size)
    source_of = sources_of(plan.files, request.group_by)
    threads = request.threads or (1 if request.engine != "local" else processors())
    collector_options, memory = _plan(request, source_of, layout, threads, text)
    if not given:
        _check_places(request, sources, vocab, out)
    check_field(sources.files, request.corpus, progress)
    fast = not given and request.engine == "local" and wants_fast(request.encoder, plan.size)
    tokenizer, loader = _open_tokenizer(request, vocab, fast, progress) if text else (None, None)
    for remark in (*_idle(request, sources, text), *remarks(sources.files, request.corpus)):
        progress.note(remark)
    progress.note(str(memory))
    if collector_options.exact_bytes is not None:
        progress.note(f"exact counting may take {bytes_text(collector_options.exact_bytes)} more")
    stamps, fingerprint = _identity(request, sources, layout, tokenizer, progress)
    work = Work(
        plan=plan,
        reading=Reading(
            layout=layout,
            options=request.corpus,
            tokenizer=tokenizer,
            encoder=request.encoder,
            threads=threads,
            loader=loader,
        ),
        collector_options=collector_options,
        source_of=source_of,
        sample_size=request.sample_size,
        join_documents=request.join_documents,
    )
    running = Running(
        memory=memory,
        checkpoints=resume_folder(out),
        fingerprint=fingerprint,
        restart=request.restart,
        checkpoint_seconds=request.checkpoint_seconds,
    )
    return work, running, stamps


def _check_fold(layout: HashLayout) -> None:
    """Raise InputError for a layout whose n-grams cannot be counted."""
    if layout.fold == "oldest-first-late":
        raise InputError(
            f"n-grams of {layout.scheme} are not counted: most do not end at the current token",
            "count with engram-v1, whose primes and multipliers are the same",
        )


def _open_tokenizer(
    request: HashStatsRequest, vocab: Path, fast: bool, progress: Progress
) -> tuple[TokenizerFile, FastLoader | None]:
    """Return the tokenizer of the corpus, and what loads fastokens for it meanwhile if `fast`."""
    file = tokenizer_file(vocab, request.geometry, request.workspace, request.tokenizer, progress)
    loader = FastLoader(file) if fast else None  # 0.5 s, while `tokenizers` and kernels are loaded
    return load_tokenizer(file, progress), loader


def _identity(
    request: HashStatsRequest,
    sources: Sources,
    layout: HashLayout,
    tokenizer: TokenizerFile | None,
    progress: Progress,
) -> tuple[Stamps | None, str | None]:
    """Return when the files were changed, and the fingerprint of all that decides the figures.

    None where a corpus cannot be read twice.
    """
    decisive = {name: getattr(request, name) for name in _DECISIVE} | {
        "layout": layout.fingerprint,
        "tokenizer": None if tokenizer is None else tokenizer.digest,
    }
    stamps = stamps_of(sources.files, request.corpus)
    fingerprint = request_fingerprint(sources.files, request.corpus, decisive, stamps)
    if fingerprint is None and request.engine == "local":
        progress.note("no checkpoints: a source is a pipe or has an unknown size")
    return stamps, fingerprint


def _plan(
    request: HashStatsRequest,
    source_of: Mapping[str, str] | None,
    layout: HashLayout,
    threads: int,
    text: bool,
) -> tuple[CollectorOptions, MemoryPlan]:
    """Return what to collect and the memory for all of it. Raises InputError if it does not fit."""
    collector_options = CollectorOptions(
        compare_uncompressed=request.compare_uncompressed,
        group_by=request.group_by,
        locality=request.locality,
        holdout=request.holdout,
        growth=request.growth,
    )
    collector_set = make_collectors(collector_options, layout, source_of, request.sample_size)
    plan = plan_memory(
        layout,
        request.sample_size,
        threads,
        text=text,
        more=collector_set.memory,
        of_thread=collector_set.thread_memory,
    )
    available = available_memory()
    check_memory(plan, available)
    if request.exact:
        room = exact_memory(available, plan.total)
        collector_options = replace(collector_options, exact=True, exact_bytes=room)
    return collector_options, plan


def _idle(request: HashStatsRequest, sources: Sources, text: bool) -> Iterator[str]:
    """Yield what was named twice, and which choices change nothing in this corpus."""
    names = ("field", "document_separator", "document_end_id", "ids_dtype", "errors")
    given = [name for name in names if getattr(request, name) not in (None, "strict")]
    yield from idle_options(sources.files, given)
    if request.suffixes is not None and not sources.folders:
        yield "--suffixes has no effect: no folder was named, and files are read as named"
    if not text and (request.tokenizer is not None or request.encoder != "auto"):
        yield "--tokenizer and --encoder have no effect: the corpus holds token ids"
    if sources.repeated:
        yield f"named twice and read once: {counted(sources.repeated, 'file')}"


def _check_places(request: HashStatsRequest, sources: Sources, vocab: Path, out: Path) -> None:
    """Raise OutputError for what may not be replaced or cannot be written."""
    if not request.force:
        clear_finished(resume_folder(out), out)
        clear_lock(resume_folder(out))
    inputs = (*sources.places, vocab, request.tokenizer)
    check_statistics(out, request.report, force=request.force, inputs=inputs)
