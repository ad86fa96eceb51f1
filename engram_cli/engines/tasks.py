"""What the workers of a cluster do: partitions in, partials out; partials in, their sum out.

Errors a user can mend travel as values: an engine that retries lost tasks must not retry these.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.encode import Encoder, make_encoder
from engram_cli.corpus.partitions import Plan
from engram_cli.corpus.stream import TokenStream
from engram_cli.engines.work import Work
from engram_cli.errors import EngramError, MismatchError
from engram_cli.files import new_file
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import SILENT
from engram_cli.stats.memory import available_memory
from engram_cli.stats.partial import Partial, read_partial
from engram_cli.stats.state import State
from engram_cli.stats.watching import Watching, exact_memory
from engram_cli.version import __version__
from engram_cli.vocab.tokenizer import load_tokenizer

TASKS_A_SLOT = 4  # so that whoever is done early takes more
# Of the counters: the sum, the part at hand and copies of them while they are added.
MERGE_COPIES = 4
_LEAST_MERGE = 350 * 10**6  # bytes of an interpreter and its libraries


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all tasks of a run need, sent once; `tokenizer`: the bytes of its file.

    `memory`: what is planned for a task, in bytes; the rest as in `Work` and `Running`.
    """

    version: str
    layout: HashLayout
    options: CorpusOptions
    tokenizer: bytes | None
    encoder: str
    watching: Watching
    source_of: Mapping[str, str] | None
    sample_size: int
    join_documents: bool
    threads: int
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
    # Read when the libraries that use it first start their threads.
    os.environ["RAYON_NUM_THREADS"] = str(shared.threads)
    try:
        _check_version(shared)
        with _encoder(shared, plan.size) as (encoder, work):
            return _count(shared, replace(work, plan=plan), encoder)
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
    """The bytes that merging takes at most, beside sections."""
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


def _count(shared: Shared, work: Work, encoder: Encoder | None) -> tuple[Report, State]:
    plan, watchers = work.plan, work.watchers()
    tally = work.tally(watchers, shared.threads)
    stream = TokenStream(plan.files, work.options, encoder, begins=plan.begins)
    counts = tally.count(stream.blocks())
    report = Report(
        size=tally.size,
        empty_files=stream.empty_files,
        cuts=stream.cuts,
        encoder=None if encoder is None else encoder.name,
    )
    return report, Partial(counts=counts, collected=watchers.partials()).state()


@contextmanager
def _encoder(shared: Shared, size: int | None) -> Iterator[tuple[Encoder | None, Work]]:
    """The encoder of a task, and the work without its plan."""
    watching = shared.watching
    if watching.exact:  # the memory here is not that of where the run was planned
        room = exact_memory(available_memory(), shared.memory)
        watching = replace(watching, exact_bytes=room)
    work = Work(
        plan=Plan(files=(), begins=()),
        options=shared.options,
        layout=shared.layout,
        tokenizer=None,
        watching=watching,
        source_of=shared.source_of,
        sample_size=shared.sample_size,
        join_documents=shared.join_documents,
    )
    if shared.tokenizer is None:
        yield None, work
        return
    with tempfile.TemporaryDirectory(prefix="engram-") as folder:
        path = Path(folder, "tokenizer.json")
        with new_file(path) as part:
            part.write_bytes(shared.tokenizer)
        tokenizer = load_tokenizer(path)
        encoder = make_encoder(tokenizer, shared.encoder, SILENT, size=size)
        try:
            yield encoder, replace(work, tokenizer=tokenizer)
        finally:
            encoder.close()


def _check_version(shared: Shared) -> None:
    if shared.version != __version__:
        raise MismatchError(
            f"a worker has engram {__version__}, this is {shared.version}",
            "install the same version on every node of the cluster",
        )
