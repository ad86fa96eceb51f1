"""The only door to `ray`, an extra: a connection to a cluster, tasks on it, what they leave behind.

In: functions of `engines.tasks` and `engines.fill_tasks`, and their arguments. Out: references to
what they gave. Lost tasks, and what lost nodes held, are made again by Ray.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.engines.tasks import Report
from engram_cli.errors import DependencyError, EngineError, InputError
from engram_cli.progress import Progress

_RETRIES = 8  # of a task whose worker or node is lost
_POLL = 0.5  # seconds

Call: TypeAlias = tuple[Any, Any, int]
"""The references to a task's report and to what it leaves, and the work it stands for."""


class Cluster:
    """A connection to a cluster."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def slots(self, cpus: int, memory: int) -> int:
        """How many tasks of so many CPUs and bytes may run at a time.

        Raises InputError when no node could take one.
        """
        nodes = self._nodes()
        fits = [
            min(int(node.get("CPU", 0)) // cpus, int(node.get("memory", 0)) // memory)
            for node in nodes
        ]
        if not any(fits):
            most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
            room = max((int(node.get("memory", 0)) for node in nodes), default=0)
            raise InputError(
                f"a task takes {cpus} CPUs and {memory / 1e6:,.0f} MB; the nodes of this cluster "
                f"have up to {most} CPUs and {room / 1e6:,.0f} MB",
                "give fewer --threads or --layers, less --memory, or larger nodes",
            )
        return sum(fits)

    @property
    def store_bytes(self) -> int:
        """What the object stores of all nodes hold in memory."""
        return sum(int(node.get("object_store_memory", 0)) for node in self._nodes())

    def _nodes(self) -> list[dict[str, Any]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def put(self, value: Any) -> Any:
        """A reference to `value`, for any number of tasks."""
        return self._ray.put(value)

    def get(self, reference: Any) -> Any:
        """What a reference stands for."""
        return self._ray.get(reference)

    def task(
        self, function: Callable[..., Any], *, cpus: int, memory: int, returns: int | str = 2
    ) -> Callable[..., Any]:
        """`function` as a task that is done again when it is lost; gives `returns` references."""
        task = self._ray.remote(function).options(
            num_cpus=cpus, memory=memory, num_returns=returns, max_retries=_RETRIES
        )
        submit: Callable[..., Any] = task.remote
        return submit

    def done(self, references: Iterable[Any]) -> list[Any]:
        """Those that are done, after a short wait: () when there are none yet."""
        done: list[Any] = self._ray.wait(list(references), timeout=_POLL)[0]
        return done

    def items(self, stream: Any) -> Iterator[Any]:
        """What a task with returns="streaming" yields, one after the other."""
        while True:
            if self.done([stream]):
                try:
                    reference = next(stream)
                except StopIteration:
                    return
                yield self._ray.get(reference)

    def gather(self, calls: Sequence[Call], progress: Progress) -> list[Any]:
        """Wait for tasks of (report, state): the references to their states, in order.

        Raises the error of the first one that failed. On any error, Ctrl-C included, all of them
        are given up.
        """
        open_ = {report: amount for report, _, amount in calls}
        try:
            while open_:
                for report in self.done(open_):
                    found: Report = self._ray.get(report)
                    if found.error is not None:
                        raise found.error
                    progress.advance(open_.pop(report))
        finally:
            self.cancel(open_)
        return [state for _, state, _ in calls]

    def cancel(self, references: Iterable[Any]) -> None:
        """Give up what is still running."""
        for reference in references:
            with suppress(Exception):  # the cluster may be gone
                self._ray.cancel(reference, force=False)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Ray's own errors as EngineError."""
        try:
            yield
        except self._ray.exceptions.RayError as error:
            raise _failed(error) from error


def fetched(reference: Any) -> NDArray[Any]:
    """Inside a task: an array of its own of what a reference stands for (Ray's are read-only)."""
    import ray

    return np.array(ray.get(reference))


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """The cluster at `address`, one that is found, or a local one; a caller's own one is used.

    It is left as it was found. Raises EngineError without one, DependencyError without Ray.
    """
    try:
        import ray  # an extra, and slow to import
    except ImportError:
        raise DependencyError(
            "--engine ray needs the package ray", "pip install 'engram-tables[ray]'"
        ) from None
    if ray.is_initialized():
        yield Cluster(ray)
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
        yield Cluster(ray)
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
