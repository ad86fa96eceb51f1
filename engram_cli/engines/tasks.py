"""What the workers of a cluster do: partitions in, partials out; partials in, their sum out.

Errors a user can fix travel as values: an engine that retries lost tasks must not retry these.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engram_cli.corpus.base import CorpusFile, CorpusOptions
from engram_cli.corpus.encode import Encoder, make_encoder
from engram_cli.corpus.partitions import Plan
from engram_cli.corpus.stream import TokenStream
from engram_cli.engines.work import Work
from engram_cli.errors import EngramError, InputError, MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import SILENT
from engram_cli.sizes import available_memory
from engram_cli.stats.collector_set import CollectorOptions, exact_memory
from engram_cli.stats.partial import Partial, read_partial
from engram_cli.stats.state import State
from engram_cli.version import __version__
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer

TASKS_A_SLOT = 4  # so that a slot that finishes early takes more
# Of the counters: the sum, the part at hand and copies of them while they are added.
MERGE_COPIES = 4
_LEAST_MERGE = 350 * 10**6  # bytes of an interpreter and its libraries


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a task needs that reads partitions, sent once; `tokenizer`: the bytes of its file.

    `version`: of the engram that asks; the rest as in `Work` and `Running`.
    """

    version: str
    layout: HashLayout
    options: CorpusOptions
    tokenizer: bytes | None
    encoder: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all counting tasks of a run need, sent once.

    `memory`: what is planned for a task, in bytes; the rest as in `Work`.
    """

    reading: Reading
    collector_options: CollectorOptions
    source_of: Mapping[str, str] | None
    sample_size: int
    join_documents: bool
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a task went: an error to raise, or what no partial holds."""

    error: EngramError | None = None
    size: int = 0
    empty_files: int = 0
    cuts: int = 0
    encoder: str | None = None


def count_part(shared: Shared, plan: Plan) -> tuple[Report, State]:
    """Count some partitions; gives the state of their `Partial`."""
    try:
        with opened_encoder(shared.reading, plan.size) as encoder:
            return _count(shared, plan, encoder)
    except EngramError as error:
        return Report(error=error), {}


def merge_parts(layout: HashLayout, *states: State) -> tuple[Report, State]:
    """Merge what two or more tasks left behind."""
    try:
        whole = read_partial(layout, states[0])
        for state in states[1:]:
            whole = whole.merge(read_partial(layout, state))
        return Report(), whole.state()
    except EngramError as error:
        return Report(error=error), {}


def merge_memory(layout: HashLayout) -> int:
    """The most bytes that merging takes, without sections."""
    return _LEAST_MERGE + MERGE_COPIES * 4 * sum(entry.rows for entry in layout.layers)


def task_bounds(sizes: Sequence[int], tasks: int) -> list[tuple[int, int]]:
    """Which partitions, of so many bytes each, every task counts: neighbours, about as many bytes
    in each of at most `tasks` tasks."""
    total, done, begin = max(sum(sizes), 1), 0, 0
    found: list[tuple[int, int]] = []
    for end, size in enumerate(sizes, 1):
        done += size
        full = done * tasks >= total * (len(found) + 1) and len(found) < tasks - 1
        if full or end == len(sizes):
            found.append((begin, end))
            begin = end
    return found


def check_reachable(files: Sequence[CorpusFile]) -> None:
    """Raises InputError for a pipe, which no worker can read."""
    for file in files:
        if file.path is None and file.url is None:
            raise InputError(
                f"{file.name} cannot be read by the workers of a cluster",
                "give files, or leave out --engine ray",
            )


def portable(plan: Plan) -> Plan:
    """`plan` as it is read from another working folder."""
    files = tuple(
        file if file.path is None else replace(file, path=file.path.absolute())
        for file in plan.files
    )
    return replace(plan, files=files)


def reading_of(
    layout: HashLayout,
    options: CorpusOptions,
    tokenizer: TokenizerFile | None,
    encoder: str,
    threads: int,
) -> Reading:
    """What tasks read the corpus with."""
    return Reading(
        version=__version__,
        layout=layout,
        options=options,
        tokenizer=None if tokenizer is None else tokenizer.read(),
        encoder=encoder,
        threads=threads,
    )


@contextmanager
def opened_encoder(reading: Reading, size: int | None) -> Iterator[Encoder | None]:
    """The encoder of a task that reads `size` bytes, None where nothing is to be encoded.

    Raises MismatchError in a worker of another version.
    """
    # Read when the libraries that use it first start their threads.
    os.environ["RAYON_NUM_THREADS"] = str(reading.threads)
    check_version(reading.version)
    if reading.tokenizer is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="engram-") as folder:
        path = Path(folder, "tokenizer.json")
        path.write_bytes(reading.tokenizer)
        encoder = make_encoder(load_tokenizer(path), reading.encoder, SILENT, size=size)
        try:
            yield encoder
        finally:
            encoder.close()


def check_version(version: str) -> None:
    """Raises MismatchError when another version of engram asks than this one."""
    if version != __version__:
        raise MismatchError(
            f"a worker has engram {__version__}, this is {version}",
            "install the same version on every node of the cluster",
        )


def _count(shared: Shared, plan: Plan, encoder: Encoder | None) -> tuple[Report, State]:
    reading, collector_options = shared.reading, shared.collector_options
    if collector_options.exact:  # the memory here is not that of where the run was planned
        room = exact_memory(available_memory(), shared.memory)
        collector_options = replace(collector_options, exact_bytes=room)
    work = Work(
        plan=plan,
        options=reading.options,
        layout=reading.layout,
        tokenizer=None,
        collector_options=collector_options,
        source_of=shared.source_of,
        sample_size=shared.sample_size,
        join_documents=shared.join_documents,
    )
    collector_set = work.collector_set()
    counter = work.counter(collector_set, reading.threads)
    stream = TokenStream(plan.files, work.options, encoder, begins=plan.begins)
    counts = counter.count(stream.blocks())
    report = Report(
        size=counter.size,
        empty_files=stream.empty_files,
        cuts=stream.cuts,
        encoder=None if encoder is None else encoder.name,
    )
    return report, Partial(counts=counts, collected=collector_set.partials()).state()
