"""The engine of a Ray cluster, and the only file that imports `ray`, an extra.

Tasks that are lost, and what lost nodes held, are made again by Ray. An error that a user can fix
travels as a value, because a task that raises would be retried.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.partitions import Plan
from engram_cli.engines.base import Call, Job, Task, portable
from engram_cli.errors import DependencyError, EngineError, EngramError, InputError, MismatchError
from engram_cli.progress import Progress
from engram_cli.version import __version__

TASKS_A_SLOT = 4  # so that a slot that finishes early takes more
FAN_IN = 4  # partials merged by a task
_AHEAD = 2  # streams a slot that are under way or wait to be taken
_RETRIES = 8  # of a task whose worker or node is lost
_POLL = 0.5  # seconds


class RayEngine:
    """Runs tasks on a cluster: a reference is an object in its stores."""

    remote = True

    def __init__(self, ray: Any, threads: int, progress: Progress) -> None:
        self.threads = threads
        self._ray, self._progress = ray, progress

    @property
    def fetch(self) -> Callable[[Any], Any]:
        """The function that gives a writable array inside a task."""
        return fetched

    @property
    def store_bytes(self) -> int:
        """What the object stores of all nodes hold in memory."""
        return sum(int(node.get("object_store_memory", 0)) for node in self._nodes())

    def _nodes(self) -> list[dict[str, Any]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def slots(self, task: Task) -> int:
        """Return how many calls run at a time. Raises InputError when no node could take one."""
        nodes = [(int(n.get("CPU", 0)), int(n.get("memory", 0))) for n in self._nodes()]
        fits = [min(cpus // task.cpus, room // task.memory) for cpus, room in nodes]
        if not any(fits):
            most = max((cpus for cpus, _ in nodes), default=0)
            room = max((room for _, room in nodes), default=0)
            raise InputError(
                f"a task takes {task.cpus} CPUs and {task.memory / 1e6:,.0f} MB; the nodes of this "
                f"cluster have up to {most} CPUs and {room / 1e6:,.0f} MB",
                "give fewer --threads or --layers, less --memory, or larger nodes",
            )
        return sum(fits)

    def put(self, value: Any) -> Any:
        """Return a reference to `value`, for any number of tasks."""
        return self._ray.put(value)

    def get(self, reference: Any) -> Any:
        """Return the value of a reference."""
        return self._ray.get(reference)

    def map(self, task: Task, calls: Sequence[Call], progress: Progress) -> list[Any]:
        """Run all calls; return references to their values, in order.

        Raises the error of the first one that failed. On any error, Ctrl-C included, all of them
        are cancelled.
        """
        submit = self._submitter(task)
        submitted = [(*submit(*arguments), amount) for arguments, amount in calls]
        running = {error: amount for error, _, amount in submitted}
        try:
            while running:
                for done in self._done(running):
                    self._raise(done)
                    progress.advance(running.pop(done))
        finally:
            self._cancel(running)
        return [value for _, value, _ in submitted]

    def stream(self, task: Task, calls: Sequence[Call]) -> Generator[Any, None, None]:
        """Yield what the calls yield, in order."""
        most = _AHEAD * self.slots(task)
        submit = self._submitter(task, _guarded_stream, "streaming")
        waiting, running = deque(calls), deque[Any]()
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    running.append(submit(*waiting.popleft()[0]))
                yield from self._items(running[0])
                running.popleft()
        finally:
            self._cancel(running)

    def reduce(self, job: Job, plan: Plan, progress: Progress) -> Any:
        """Run a job over neighbouring partitions and merge their partials."""
        plan = portable(plan)
        task = Task(function=_run, cpus=self.threads, memory=job.memory)
        slots = self.slots(replace(task, memory=max(job.memory, job.merge_memory)))
        sizes = [plan.part(number, number + 1).size or 0 for number in range(len(plan))]
        bounds = task_bounds(sizes, TASKS_A_SLOT * slots)
        self._progress.note(
            f"ray: {len(bounds)} tasks for {len(plan)} partitions, {slots} at a time, "
            f"{job.memory / 1e6:,.0f} MB each"
        )
        progress.start(job.what, plan.size, "bytes")
        shared = self.put(job.sent())
        submit = self._submitter(task)
        merge = self._submitter(Task(function=_merge, memory=job.merge_memory))
        waiting: list[tuple[int, Any]] = []  # merges from the leaves, partial
        running: dict[Any, tuple[Any, int, int]] = {}  # error -> partial, level, bytes
        try:
            for first, last in bounds:
                part = plan.part(first, last)
                error, partial = submit(shared, part)
                running[error] = partial, 0, part.size or 0
            while running or len(waiting) > 1:
                while group := _take_group(waiting, last=not running):
                    error, partial = merge(shared, *(partial for _, partial in group))
                    running[error] = partial, group[-1][0] + 1, 0
                for done in self._done(running):
                    self._raise(done)
                    partial, level, size = running.pop(done)
                    waiting.append((level, partial))
                    progress.advance(size)
            return job.result(self.get(waiting[0][1]))
        finally:
            self._cancel(running)

    def _submitter(
        self, task: Task, guard: Callable[..., Any] | None = None, returns: int | str = 2
    ) -> Callable[..., Any]:
        """Return what submits calls, which are done again when they are lost."""
        remote = self._ray.remote(guard or _guarded).options(
            num_cpus=task.cpus, memory=task.memory, num_returns=returns, max_retries=_RETRIES
        )

        def submit(*arguments: Any) -> Any:
            return remote.remote(__version__, task.function, *arguments)

        return submit

    def _done(self, references: Iterable[Any]) -> list[Any]:
        """Return those that are done, after a short wait: () when there are none yet."""
        done: list[Any] = self._ray.wait(list(references), timeout=_POLL)[0]
        return done

    def _raise(self, reference: Any) -> None:
        error: EngramError | None = self._ray.get(reference)
        if error is not None:
            raise error

    def _items(self, stream: Any) -> Iterator[Any]:
        while True:
            if self._done([stream]):
                try:
                    item = self._ray.get(next(stream))
                except StopIteration:
                    return
                if isinstance(item, EngramError):
                    raise item
                yield item

    def _cancel(self, references: Iterable[Any]) -> None:
        for reference in references:
            with suppress(Exception):  # the cluster may be gone
                self._ray.cancel(reference, force=False)


def _take_group(waiting: list[tuple[int, Any]], *, last: bool) -> list[tuple[int, Any]]:
    """Take partials to be merged: `FAN_IN` of one level, or the lowest ones when no task is left.

    So merges form a tree, and no partial is merged again for each that is done.
    """
    waiting.sort(key=lambda each: each[0])
    for at in range(len(waiting)):
        group = waiting[at : at + FAN_IN]
        if last or (len(group) == FAN_IN and group[0][0] == group[-1][0]):
            del waiting[at : at + FAN_IN]
            return group
    return []


def task_bounds(sizes: Sequence[int], tasks: int) -> list[tuple[int, int]]:
    """Return which partitions, of so many bytes each, every task takes: neighbours, about as many
    bytes in each of at most `tasks` tasks."""
    total, done, begin = max(sum(sizes), 1), 0, 0
    found: list[tuple[int, int]] = []
    for end, size in enumerate(sizes, 1):
        done += size
        full = done * tasks >= total * (len(found) + 1) and len(found) < tasks - 1
        if full or end == len(sizes):
            found.append((begin, end))
            begin = end
    return found


def _run(job: Job, plan: Plan) -> Any:
    return job.partial(job.run(plan))


def _merge(job: Job, *partials: Any) -> Any:
    return job.merge(*partials)


def _guarded(
    version: str, function: Callable[..., Any], *arguments: Any
) -> tuple[EngramError | None, Any]:
    """Call a function in a worker; return its error, or its value."""
    try:
        _check_version(version)
        return None, function(*arguments)
    except EngramError as error:
        return error, None


def _guarded_stream(
    version: str, function: Callable[..., Any], *arguments: Any
) -> Iterator[EngramError | Any]:
    """Yield what a function yields in a worker, and its error at last."""
    try:
        _check_version(version)
        yield from function(*arguments)
    except EngramError as error:
        yield error


def _check_version(version: str) -> None:
    """Raises MismatchError when another version of engram asks than this one."""
    if version != __version__:
        raise MismatchError(
            f"a worker has engram {__version__}, this is {version}",
            "install the same version on every node of the cluster",
        )


def fetched(reference: Any) -> NDArray[Any]:
    """Return, inside a task, a writable copy of the array that a reference stands for."""
    import ray

    return np.array(ray.get(reference))


@contextmanager
def connected(address: str | None, threads: int, progress: Progress) -> Iterator[RayEngine]:
    """Open the cluster at `address`, one that is found, or a local one; a caller's own is used.

    It is left as it was found. Raises EngineError without one, DependencyError without Ray.
    """
    try:
        import ray  # an extra, and slow to import
    except ImportError:
        raise DependencyError(
            "--engine ray needs the package ray", "pip install 'engram-tables[ray]'"
        ) from None
    engine = RayEngine(ray, threads, progress)
    if ray.is_initialized():
        with _failures(ray):
            yield engine
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # users did not ask to be counted
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
        with _failures(ray):
            yield engine
    finally:
        ray.shutdown()


@contextmanager
def _failures(ray: Any) -> Iterator[None]:
    """Raise Ray's own errors as EngineError within a block."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise EngineError(
            f"Ray gave up a task: {type(cause).__name__}: {_line(cause)}",
            "install the same engram and extras on every node; see its logs, `ray logs`",
        ) from error


def _line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
