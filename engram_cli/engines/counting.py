"""Counts a corpus for hash-stats: a job for any engine, which is resumed where it runs here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from engram_cli.corpus.base import Cuts
from engram_cli.corpus.encode import EncoderDiffers
from engram_cli.corpus.partitions import Plan
from engram_cli.engines.base import Engine, Reading
from engram_cli.engines.local import put_off
from engram_cli.errors import ArtifactError, CorpusError, MismatchError, UndecodableError
from engram_cli.hashing.layout import HashLayout
from engram_cli.numbers import bytes_text
from engram_cli.progress import SILENT, Progress
from engram_cli.sizes import available_memory
from engram_cli.stats.collector_set import (
    CollectorSet,
    check_exact_memory,
    exact_memory,
    make_collectors,
)
from engram_cli.stats.counting.checkpoint import (
    Checkpoint,
    FolderCheckpointer,
    read_checkpoint,
    remove_checkpoint,
)
from engram_cli.stats.counting.count import CorpusCounter
from engram_cli.stats.counting.memory import MemoryPlan
from engram_cli.stats.partial import Partial, read_partial
from engram_cli.stats.state import State
from engram_cli.stats.statistic import CollectorOptions
from engram_cli.stats.totals import Counts

# Of the counters: the sum, the part at hand and copies of them while they are added.
MERGE_COPIES = 4
_LEAST_MERGE = 350 * 10**6  # bytes of an interpreter and its libraries


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is counted, all that decides the figures.

    `source_of`: the source of each file by its key, None without groups of files.
    """

    plan: Plan
    reading: Reading
    collector_options: CollectorOptions
    source_of: Mapping[str, str] | None
    sample_size: int
    join_documents: bool

    @property
    def layout(self) -> HashLayout:
        """The layout that is counted."""
        return self.reading.layout

    def collector_set(self) -> CollectorSet:
        """Return new collectors."""
        return make_collectors(
            self.collector_options, self.layout, self.source_of, self.sample_size
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How it is counted; this decides no figure.

    `memory`: what one counter takes. `checkpoints`: their folder; `fingerprint`: of the request,
    None when nothing can be resumed; `restart`, `checkpoint_seconds`: as in `HashStatsRequest`.
    """

    memory: MemoryPlan
    checkpoints: Path
    fingerprint: str | None
    restart: bool = False
    checkpoint_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counted:
    """The counts of a corpus.

    `encoder`: the packages that encoded at the end, None without texts; `seconds` of this run,
    which found `resumed_tokens` counted before; `cuts`: where long documents were cut.
    `empty_documents`: texts of no characters, in files that hold others.
    """

    partial: Partial
    empty_files: int
    empty_documents: int
    cuts: Cuts
    encoder: str | None
    seconds: float = 0.0
    resumed_tokens: int = 0

    @property
    def counts(self) -> Counts:
        """The counts without what the collectors found."""
        return self.partial.counts


Part: TypeAlias = tuple[State, int, int, Cuts, frozenset[str]]
"""A `Partial` as a state, empty files, empty documents, cuts and encoders."""


def count(engine: Engine, work: Work, running: Running, progress: Progress) -> Counted:
    """Count with an engine; one that runs here resumes from a checkpoint where there is one.

    When the fast encoder turns out to differ, count again from the start without it. Raises
    CorpusError, TokenIdError, InputError when memory does not suffice or for pipes that workers
    cannot read, EngineError and DependencyError for a cluster.
    """
    found = None if engine.remote else _find_checkpoint(running, progress)
    try:
        return _count(engine, work, running, None, found, progress)
    except EncoderDiffers as error:
        if work.plan.size is None:  # what came through a pipe is gone
            raise
        if not engine.remote:
            remove_checkpoint(running.checkpoints)
        progress.note(f"{error.message}: counting again from the start with tokenizers")
    return _count(engine, work, running, "tokenizers", None, progress)


def resume_folder(out: Path) -> Path:
    """Return the folder of the checkpoints of the run that writes `out`."""
    return out.parent / f".{out.name}.resume"


def _count(
    engine: Engine,
    work: Work,
    running: Running,
    encoder: str | None,
    found: Checkpoint | None,
    progress: Progress,
) -> Counted:
    """Count once. `encoder`: None for that of the checkpoint, or of `work`."""
    begin = time.perf_counter()
    counter = None
    if encoder is None and found is not None:
        encoder = found.encoder
    if encoder is not None:
        work = replace(work, reading=replace(work.reading, encoder=encoder))
    if not engine.remote:
        counter = _start_counter(work, running, encoder, found, progress)
    job = CountJob(work=work, memory=running.memory.total, counter=counter)
    counted: Counted = engine.reduce(job, work.plan, progress)
    files = work.plan.files
    if not counted.counts.tokens:
        many, first = len(files), files[0].name
        what = first if many == 1 else f"the corpus of {many} files, from {first} on,"
        raise CorpusError(f"{what} holds no token", "give files with text")
    if counted.empty_files:
        progress.note(f"{counted.empty_files} empty files were skipped")
    if counted.empty_documents:
        progress.note(f"{counted.empty_documents:,} empty documents were skipped")
    if counted.cuts.total:
        progress.note(
            f"long documents were tokenised in pieces, cut at {counted.cuts}; n-grams run across "
            "the cuts, and tokens at a cut may differ from those of the whole text"
        )
    resumed = 0 if counter is None else counter.resumed
    return replace(counted, seconds=time.perf_counter() - begin, resumed_tokens=resumed)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountJob:
    """Counting as a `Job`. `memory`: of a counter. `counter`: what to use, None for a new one."""

    work: Work
    memory: int
    counter: _Counter | None = field(default=None, repr=False)

    what = "counting"

    @property
    def merge_memory(self) -> int:
        """The most bytes that merging takes, without the partials of collectors."""
        rows = sum(entry.rows for entry in self.work.layout.layers)
        return _LEAST_MERGE + MERGE_COPIES * 4 * rows

    def sent(self) -> CountJob:
        """Return the job without what only the sender needs."""
        reading, nothing = self.work.reading.sent(), Plan(files=(), begins=())
        return replace(self, work=replace(self.work, plan=nothing, reading=reading), counter=None)

    def run(self, plan: Plan) -> Counted:
        """Count some partitions."""
        if self.counter is not None:
            return self.counter.run(plan)
        options = self.work.collector_options
        if options.exact:  # the memory here is not that of where the run was planned
            room = exact_memory(available_memory(), self.memory)
            options = replace(options, exact_bytes=room)
        return _Counter(replace(self.work, collector_options=options)).run(plan)

    def partial(self, counted: Counted) -> Part:
        """Return the counts as named arrays."""
        encoders = frozenset(() if counted.encoder is None else (counted.encoder,))
        return (
            counted.partial.state(),
            counted.empty_files,
            counted.empty_documents,
            counted.cuts,
            encoders,
        )

    def merge(self, *parts: Part) -> Part:
        """Merge parts. Raises ArtifactError, MismatchError."""
        layout = self.work.layout
        whole = read_partial(layout, parts[0][0])
        for state, *_ in parts[1:]:
            whole = whole.merge(read_partial(layout, state))
        _, empty_files, empty_documents, cuts, encoders = zip(*parts, strict=True)
        return (
            whole.state(),
            sum(empty_files),
            sum(empty_documents),
            sum(cuts, Cuts()),
            frozenset().union(*encoders),
        )

    def result(self, part: Part) -> Counted:
        """Return the counts in a part. Raises InputError when all n-grams do not fit here."""
        state, empty_files, empty_documents, cuts, encoders = part
        partial = read_partial(self.work.layout, state)
        check_exact_memory(self.work.collector_options, partial.collected)
        return Counted(
            partial=partial,
            empty_files=empty_files,
            empty_documents=empty_documents,
            cuts=cuts,
            encoder=", ".join(sorted(encoders)) or None,
        )


class _Counter:
    """Counts some partitions in this process, or continues from a checkpoint."""

    def __init__(
        self,
        work: Work,
        found: Checkpoint | None = None,
        checkpointer: FolderCheckpointer | None = None,
        progress: Progress = SILENT,
    ) -> None:
        """Raises ArtifactError for a checkpoint that is unsound."""
        self._reading, self._progress, self._checkpointer = work.reading, progress, checkpointer
        self._collector_set = collector_set = work.collector_set()
        self._counter = CorpusCounter(
            work.layout,
            sample_size=work.sample_size,
            threads=work.reading.threads,
            join_documents=work.join_documents,
            collectors=collector_set.collectors,
            holdout=collector_set.holdout,
        )
        self._read_position = None
        if found is not None:
            self._counter.restore(found.state)
            self._read_position = found.read_position
        self.resumed = self._counter.tokens

    def run(self, plan: Plan) -> Counted:
        """Count the partitions. Raises KeyboardInterrupt after a last checkpoint."""
        progress, counter, checkpointer = self._progress, self._counter, self._checkpointer
        if counter.size:
            progress.advance(counter.size)
        with self._reading.stream(plan, self._read_position, progress) as (stream, encoder):
            try:
                with nullcontext() if checkpointer is None else put_off(checkpointer.ending):
                    counts = counter.count(stream.blocks(), progress, checkpointer)
            except KeyboardInterrupt:
                if kept := self._saved_tokens:
                    progress.note(f"{kept:,} tokens are kept: the same command resumes from there")
                else:
                    progress.note("no checkpoint was written yet: the same command starts over")
                raise
            except UndecodableError:
                if kept := self._saved_tokens:
                    progress.note(
                        f"{kept:,} tokens are kept: the same command with --errors replace "
                        "continues there"
                    )
                raise
            return Counted(
                partial=Partial(counts=counts, collected=self._collector_set.partials()),
                empty_files=stream.empty_files,
                empty_documents=stream.empty_documents,
                cuts=stream.cuts,
                encoder=None if encoder is None else encoder.name,
            )

    @property
    def _saved_tokens(self) -> int:
        latest = None if self._checkpointer is None else self._checkpointer.tokens
        return self.resumed if latest is None else latest


def _start_counter(
    work: Work,
    running: Running,
    encoder: str | None,
    found: Checkpoint | None,
    progress: Progress,
) -> _Counter:
    """Return what counts from a checkpoint; without it, with a note, where it is unsound."""
    checkpointer = None
    if running.fingerprint is not None:
        seconds, folder = running.checkpoint_seconds, running.checkpoints
        checkpointer = FolderCheckpointer(folder, running.fingerprint, seconds, progress, encoder)
    try:
        counter = _Counter(work, found, checkpointer, progress)
    except ArtifactError as error:
        progress.note(f"counting from the start, the checkpoint is dropped: {error.message}")
        remove_checkpoint(running.checkpoints)
        return _start_counter(work, running, encoder, None, progress)
    if found is not None:
        found.state.clear()  # its arrays are mapped from a file that is to go
        size = work.plan.size
        whole = "" if size is None else f" of {bytes_text(size)}"
        progress.note(
            f"going on from a checkpoint: {found.tokens:,} tokens, "
            f"{bytes_text(found.size)}{whole}, are counted"
        )
    return counter


def _find_checkpoint(running: Running, progress: Progress) -> Checkpoint | None:
    """Return the checkpoint to continue from; remove one that is of no use, with a note."""
    folder = running.checkpoints
    if running.fingerprint is None or not folder.exists():
        return None
    why = "--restart"
    if not running.restart:
        try:
            found = read_checkpoint(folder, running.fingerprint)
        except MismatchError:
            why = "it is of other files or options"
        except ArtifactError as error:
            why = error.message
        else:
            if found is not None:
                return found
            why = ""  # a run that was killed before the first was whole
    if why:
        progress.note(f"counting from the start, the checkpoint in {folder} is dropped: {why}")
    remove_checkpoint(folder)
    return None
