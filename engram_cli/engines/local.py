"""The engine of this machine: every task runs here, one after another, with threads of its own.

One task takes a whole corpus, so nothing is merged, and checkpoints are saved on the way.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from engram_cli import interrupts
from engram_cli.corpus.partitions import Plan
from engram_cli.engines.base import Call, Job, Task
from engram_cli.progress import Progress

PATIENCE = 2.0  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LocalEngine:
    """Runs tasks in this process: a reference is the value itself."""

    remote = False
    store_bytes = 2**31

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @property
    def fetch(self) -> Callable[[Any], Any]:
        """The identity: values lie here."""
        return _identity

    def slots(self, task: Task) -> int:
        """Return 1: a task uses the threads itself."""
        return 1

    def put(self, value: Any) -> Any:
        """Return `value`."""
        return value

    def get(self, reference: Any) -> Any:
        """Return `reference`."""
        return reference

    def map(self, task: Task, calls: Sequence[Call], progress: Progress) -> list[Any]:
        """Run all calls."""
        values = []
        for arguments, amount in calls:
            values.append(task.function(*arguments))
            progress.advance(amount)
        return values

    def stream(self, task: Task, calls: Sequence[Call]) -> Generator[Any, None, None]:
        """Yield what the calls yield."""
        for arguments, _ in calls:
            yield from task.function(*arguments)

    def reduce(self, job: Job, plan: Plan, progress: Progress) -> Any:
        """Run a job over all partitions at once; the job reports its progress."""
        progress.start(job.what, plan.size, "bytes")
        return job.run(plan)


def _identity(reference: Any) -> Any:
    return reference


@contextmanager
def local(address: str | None, threads: int, progress: Progress) -> Iterator[LocalEngine]:
    """Open the engine of this machine, which has no address."""
    yield LocalEngine(threads)


@contextmanager
def put_off(asked: threading.Event, patience: float = PATIENCE) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM set `asked` instead of raising KeyboardInterrupt.

    That is raised by the next one, after `patience` seconds, or at the end of the block. Only
    signals that would raise it are taken, and only in the main thread, which alone may handle any.
    """
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    taken = [each for each in _SIGNALS if before[each] in interrupts.RAISING]
    main = threading.main_thread().ident
    if not taken or main is None or main != threading.get_ident():
        yield
        return
    over = threading.Event()

    def heard(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        interrupts.came(number)
        asked.set()

    def watch() -> None:
        asked.wait()
        if not over.wait(patience):
            signal.pthread_kill(main, taken[0])

    # Started now: a handler must not wait for the locks that starting a thread takes.
    watcher = threading.Thread(target=watch, daemon=True, name="engram-interruption")
    watcher.start()
    for each in taken:
        signal.signal(each, heard)
    try:
        yield
        if asked.is_set():
            raise KeyboardInterrupt
    finally:
        for each in taken:
            signal.signal(each, before[each])
        over.set()
        asked.set()  # whether or not it was: the watcher must end
        watcher.join()
