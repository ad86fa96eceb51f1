"""hash-stats on a cluster: partitions become Ray tasks, their partials are merged in a tree.

What is counted, and every figure, is that of the local engine to the bit: partials merge in any
order.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from engram_cli.corpus.encode import EncoderDiffers
from engram_cli.corpus.partitions import Plan
from engram_cli.engines.ray import Cluster, connected
from engram_cli.engines.tasks import (
    TASKS_A_SLOT,
    Report,
    Shared,
    check_reachable,
    count_part,
    merge_memory,
    merge_parts,
    portable,
    reading_of,
    task_bounds,
)
from engram_cli.engines.work import Counted, Running, Work
from engram_cli.progress import Progress
from engram_cli.stats.collector_set import check_exact_memory
from engram_cli.stats.partial import Partial, read_partial

FAN_IN = 4  # partials merged by a task


def count(work: Work, running: Running, progress: Progress) -> Counted:
    """Count on the Ray cluster at `running.address`, on one that is found, or on a local one.

    Raises CorpusError, TokenIdError, InputError for pipes and what no node can hold, EngineError
    when the cluster fails, DependencyError without Ray.
    """
    check_reachable(work.plan.files)
    with connected(running.address) as cluster:
        try:
            return _count(cluster, work, running, progress).checked(work, progress)
        except EncoderDiffers as error:
            progress.note(f"{error.message}: counting again from the start with tokenizers")
        again = replace(running, encoder="tokenizers")
        return _count(cluster, work, again, progress).checked(work, progress)


def _count(cluster: Cluster, work: Work, running: Running, progress: Progress) -> Counted:
    begin = time.perf_counter()
    needed = max(running.memory.total, merge_memory(work.layout))
    slots = cluster.slots(running.threads, needed)
    plan = work.plan
    parts = [plan.part(number, number + 1).size or 0 for number in range(len(plan))]
    bounds = task_bounds(parts, TASKS_A_SLOT * slots)
    progress.note(
        f"ray: {len(bounds)} tasks for {len(plan)} partitions, {slots} at a time, "
        f"{running.memory.total / 1e6:,.0f} MB each"
    )
    progress.start("counting", plan.size, "bytes")
    run = _Run(cluster, work, running)
    with cluster.failures():
        try:
            for first, last in bounds:
                run.submit(plan.part(first, last))
            partial = run.result(progress)
        finally:
            run.cancel()
    check_exact_memory(work.collector_options, partial.collected)
    encoders = sorted({each.encoder for each in run.reports if each.encoder is not None})
    return Counted(
        partial=partial,
        empty_files=sum(each.empty_files for each in run.reports),
        cuts=sum(each.cuts for each in run.reports),
        encoder=", ".join(encoders) or None,
        seconds=time.perf_counter() - begin,
    )


@dataclass(slots=True)
class _Tree:
    """Partials that wait to be merged, by how many merges they are from the leaves."""

    levels: list[list[Any]] = field(default_factory=list)

    def take(self, state: Any, level: int) -> list[Any] | None:
        """One more; gives those that are to be merged now."""
        while len(self.levels) <= level:
            self.levels.append([])
        waiting = self.levels[level]
        waiting.append(state)
        if len(waiting) < FAN_IN:
            return None
        self.levels[level] = []
        return waiting

    def rest(self) -> list[Any]:
        """The fewest that wait, up to `FAN_IN` of them, those with the fewest merges first."""
        found: list[Any] = []
        for waiting in self.levels:
            while waiting and len(found) < FAN_IN:
                found.append(waiting.pop())
        return found


class _Run:
    """The tasks of one run: submitted, waited for, merged as they come."""

    def __init__(self, cluster: Cluster, work: Work, running: Running) -> None:
        self.reports: list[Report] = []
        self._cluster = cluster
        self._layout = work.layout
        self._tree = _Tree()
        self._open: dict[Any, tuple[Any, int, int]] = {}  # report -> state, level, bytes
        shared = Shared(
            reading=reading_of(
                work.layout, work.options, work.tokenizer, running.encoder, running.threads
            ),
            collector_options=work.collector_options,
            source_of=work.source_of,
            sample_size=work.sample_size,
            join_documents=work.join_documents,
            memory=running.memory.total,
        )
        self._shared, self._layout_there = cluster.put(shared), cluster.put(work.layout)
        self._count = cluster.task(count_part, cpus=running.threads, memory=running.memory.total)
        self._merge = cluster.task(merge_parts, cpus=1, memory=merge_memory(work.layout))

    def submit(self, plan: Plan) -> None:
        """Let some worker count these partitions."""
        report, state = self._count(self._shared, portable(plan))
        self._open[report] = state, 0, plan.size or 0

    def result(self, progress: Progress) -> Partial:
        """The sum of all. Raises the error of the first task that failed."""
        while True:
            while self._open:
                for report in self._cluster.done(self._open):
                    self._finish(report, progress)
            rest = self._tree.rest()
            if len(rest) == 1:
                state: Any = self._cluster.get(rest[0])
                return read_partial(self._layout, state)
            self._submit_merge(rest, len(self._tree.levels))

    def cancel(self) -> None:
        """Give up what is still running."""
        self._cluster.cancel(self._open)

    def _finish(self, done: Any, progress: Progress) -> None:
        found: Report = self._cluster.get(done)
        state, level, size = self._open.pop(done)
        if found.error is not None:
            raise found.error
        self.reports.append(found)
        progress.advance(size)
        ready = self._tree.take(state, level)
        if ready is not None:
            self._submit_merge(ready, level + 1)

    def _submit_merge(self, states: list[Any], level: int) -> None:
        report, state = self._merge(self._layout_there, *states)
        self._open[report] = state, level, 0
