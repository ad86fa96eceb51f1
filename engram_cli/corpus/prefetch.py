"""Runs a generator ahead of its consumer in a thread, and hands over its items in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL = 0.1  # seconds: how late a thread may see that it is no longer wanted


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class _End:
    pass


class _Channel(Generic[T]):
    """The queue between a thread and its consumer."""

    def __init__(self, depth: int, cancel: threading.Event) -> None:
        self.items: queue.Queue[T | _Failure | _End] = queue.Queue(depth)
        self.unwanted = threading.Event()
        self.cancel = cancel

    def put(self, item: T | _Failure | _End) -> bool:
        """Hand over `item`; return False when the consumer is gone."""
        while not (self.unwanted.is_set() or self.cancel.is_set()):
            with suppress(queue.Full):
                self.items.put(item, timeout=_POLL)
                return True
        return False

    def get(self) -> T | _Failure | _End:
        """Return the next item; the end when everything was cancelled."""
        while not self.cancel.is_set():
            with suppress(queue.Empty):
                return self.items.get(timeout=_POLL)
        return _End()

    def run(self, source: Generator[T, None, None]) -> None:
        """Hand over all that `source` gives, then the end or the error it ended with."""
        last: _Failure | _End = _End()
        try:
            for item in source:
                if not self.put(item):
                    break
        except BaseException as error:
            last = _Failure(error)
        finally:
            source.close()
        self.put(last)


def prefetch(
    source: Generator[T, None, None],
    *,
    depth: int,
    cancel: threading.Event,
    patience: float,
    last: bool = False,
) -> Generator[T, None, None]:
    """Yield the items of `source`, made up to `depth` ahead in a thread.

    An error of the source is raised here. When this generator is closed the source is closed too,
    in its thread; up to `patience` seconds are waited for that, for the thread may hang in a read
    from a pipe and does not keep the program from ending. `cancel` is shared by all the threads of
    a line; only the `last` of them sets it, whose consumer is at the end of the chain.
    """
    channel: _Channel[T] = _Channel(depth, cancel)
    thread = threading.Thread(
        target=channel.run, args=(source,), daemon=True, name="engram-prefetch"
    )
    thread.start()
    try:
        while True:
            item = channel.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        channel.unwanted.set()
        if last:
            cancel.set()
        thread.join(patience)
