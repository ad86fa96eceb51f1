"""The engine of a cluster: partitions become Ray tasks, their partials are merged in a tree.

The only door to `ray`, an extra. What is counted, and every figure, is that of the local engine to
the bit: partials merge in any order. Lost tasks, and what lost nodes held, are made again by Ray.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from engram_cli.corpus.encode import EncoderDiffers
from engram_cli.corpus.partitions import Plan
from engram_cli.engines.tasks import (
    TASKS_A_SLOT,
    Report,
    Shared,
    count_part,
    merge_memory,
    merge_parts,
    task_bounds,
)
from engram_cli.engines.work import Counted, Running, Work
from engram_cli.errors import DependencyError, EngineError, InputError
from engram_cli.progress import Progress
from engram_cli.stats.partial import Partial, read_partial
from engram_cli.version import __version__

FAN_IN = 4  # partials merged by a task
_RETRIES = 8  # of a task whose worker or node is lost
_POLL = 0.5  # seconds


def count(work: Work, running: Running, progress: Progress) -> Counted:
    """Count on the Ray cluster at `running.address`, on one that is found, or on a local one.

    Raises CorpusError, TokenIdError, InputError for pipes and what no node can hold, EngineError
    when the cluster fails, DependencyError without Ray.
    """
    for file in work.plan.files:
        if file.path is None and file.url is None:
            raise InputError(
                f"{file.name} cannot be read by the workers of a cluster",
                "give files, or leave out --engine ray",
            )
    try:
        import ray  # an extra, and slow to import
    except ImportError:
        raise DependencyError(
            "--engine ray needs the package ray", "pip install 'engram-tables[ray]'"
        ) from None
    with _session(ray, running.address):
        try:
            return _count(ray, work, running, progress).checked(work, progress)
        except EncoderDiffers as error:
            progress.note(f"{error.message}: counting again from the start with tokenizers")
        again = replace(running, encoder="tokenizers")
        return _count(ray, work, again, progress).checked(work, progress)


def _count(ray: Any, work: Work, running: Running, progress: Progress) -> Counted:
    begin = time.perf_counter()
    slots = _slots(ray, work, running)
    plan = work.plan
    parts = [plan.part(number, number + 1).size or 0 for number in range(len(plan))]
    bounds = task_bounds(parts, TASKS_A_SLOT * slots)
    progress.note(
        f"ray: {len(bounds)} tasks for {len(plan)} partitions, {slots} at a time, "
        f"{running.memory.total / 1e6:,.0f} MB each"
    )
    progress.start("counting", plan.size, "bytes")
    run = _Run(ray, work, running)
    try:
        for first, last in bounds:
            run.submit(plan.part(first, last))
        partial = run.result(progress)
    except ray.exceptions.RayError as error:
        raise _failed(error) from error
    finally:
        run.cancel()
    watchers = work.watchers()
    watchers.absorb(partial.collected)
    encoders = sorted({each.encoder for each in run.reports if each.encoder is not None})
    return Counted(
        counts=partial.counts,
        watchers=watchers,
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

    def __init__(self, ray: Any, work: Work, running: Running) -> None:
        self.reports: list[Report] = []
        self._ray = ray
        self._layout = work.layout
        self._tree = _Tree()
        self._open: dict[Any, tuple[Any, int, int]] = {}  # report -> state, level, bytes
        shared = Shared(
            version=__version__,
            layout=work.layout,
            options=work.options,
            tokenizer=None if work.tokenizer is None else work.tokenizer.path.read_bytes(),
            encoder=running.encoder,
            watching=work.watching,
            source_of=work.source_of,
            sample_size=work.sample_size,
            join_documents=work.join_documents,
            threads=running.threads,
            memory=running.memory.total,
        )
        self._shared, self._layout_there = ray.put(shared), ray.put(work.layout)
        lasting = {"num_returns": 2, "max_retries": _RETRIES}
        self._count = ray.remote(count_part).options(
            num_cpus=running.threads, memory=running.memory.total, **lasting
        )
        self._merge = ray.remote(merge_parts).options(
            num_cpus=1, memory=merge_memory(work.layout), **lasting
        )

    def submit(self, plan: Plan) -> None:
        """Let some worker count these partitions."""
        here = [
            file if file.path is None else replace(file, path=file.path.absolute())
            for file in plan.files  # a worker has another working folder
        ]
        report, state = self._count.remote(self._shared, replace(plan, files=tuple(here)))
        self._open[report] = state, 0, plan.size or 0

    def result(self, progress: Progress) -> Partial:
        """The sum of all. Raises the error of the first task that failed."""
        while True:
            while self._open:
                done, _ = self._ray.wait(list(self._open), timeout=_POLL)
                for report in done:
                    self._finish(report, progress)
            rest = self._tree.rest()
            if len(rest) == 1:
                state: Any = self._ray.get(rest[0])
                return read_partial(self._layout, state)
            self._submit_merge(rest, len(self._tree.levels))

    def cancel(self) -> None:
        """Give up what is still running."""
        for report in self._open:
            with suppress(Exception):  # the cluster may be gone
                self._ray.cancel(report, force=False)

    def _finish(self, done: Any, progress: Progress) -> None:
        found: Report = self._ray.get(done)
        state, level, size = self._open.pop(done)
        if found.error is not None:
            raise found.error
        self.reports.append(found)
        progress.advance(size)
        ready = self._tree.take(state, level)
        if ready is not None:
            self._submit_merge(ready, level + 1)

    def _submit_merge(self, states: list[Any], level: int) -> None:
        report, state = self._merge.remote(self._layout_there, *states)
        self._open[report] = state, level, 0


def _slots(ray: Any, work: Work, running: Running) -> int:
    """How many tasks may run at a time. Raises InputError when no node could take one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    threads = running.threads
    needed = max(running.memory.total, merge_memory(work.layout))
    fits = [
        min(int(node.get("CPU", 0)) // threads, int(node.get("memory", 0)) // needed)
        for node in nodes
    ]
    if not any(fits):
        most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        room = max((int(node.get("memory", 0)) for node in nodes), default=0)
        raise InputError(
            f"a task takes {threads} CPUs and {needed / 1e6:,.0f} MB; the nodes of this cluster "
            f"have up to {most} CPUs and {room / 1e6:,.0f} MB",
            "give fewer --threads or --layers, or larger nodes",
        )
    return sum(fits)


@contextmanager
def _session(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to a cluster, which is left as it was found; a caller's own one is used."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked to be counted
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False,
        )
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        where = f"at {address}" if address else "here"
        raise EngineError(
            f"no Ray cluster {where}: {_line(error)}", "check --ray-address, and `ray status`"
        ) from None
    if handler is not None:  # Ray takes it for itself
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _failed(error: Exception) -> EngineError:
    """What Ray says of a task that failed for good."""
    cause = getattr(error, "cause", None) or error
    return EngineError(
        f"Ray gave up a task: {type(cause).__name__}: {_line(cause)}",
        "install the same engram and extras on every node; see its logs, `ray logs`",
    )


def _line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
