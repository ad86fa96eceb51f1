"""Threads that count: each takes every passage, in order, and counts its own share of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TypeAlias

from engram_cli.stats.counters import STEP, Share
from engram_cli.stats.passage import Passage

_DEPTH = 3  # passages that wait for a thread
_POLL = 0.2  # seconds: how late a failed thread is noticed
# A passage to count, an event to set when all before it is counted, None at the end.
_Item: TypeAlias = Passage | threading.Event | None


class Crew:
    """Used in a `with` block: at its end every passage has been counted, or the error is raised.

    When the block ends by an exception, Ctrl-C among them, the threads stop at the next step, a few
    milliseconds later.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._lines: list[queue.Queue[_Item]] = [queue.Queue(_DEPTH) for _ in shares]
        self._threads = [
            threading.Thread(target=self._run, args=pair, name="engram-count", daemon=True)
            for pair in zip(shares, self._lines, strict=True)
        ]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def push(self, passage: Passage) -> None:
        """Hand a passage to every thread; waits while one of them is behind."""
        for line in self._lines:
            self._put(line, passage)

    def drain(self) -> None:
        """Wait until every passage handed over has been counted by every thread."""
        reached = [threading.Event() for _ in self._lines]
        for line, event in zip(self._lines, reached, strict=True):
            self._put(line, event)
        for event in reached:
            while not event.wait(_POLL):
                if self._errors:
                    raise self._errors[0]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                for line in self._lines:
                    self._put(line, None)
                for thread in self._threads:
                    while thread.is_alive():
                        thread.join(_POLL)
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        if kind is None and self._errors:
            raise self._errors[0]

    def _put(self, line: queue.Queue[_Item], item: _Item) -> None:
        while not self._errors:
            with suppress(queue.Full):
                return line.put(item, timeout=_POLL)
        raise self._errors[0]

    def _run(self, share: Share, line: queue.Queue[_Item]) -> None:
        try:
            scratch = share.scratch()
            while not self._stop.is_set():
                try:
                    passage = line.get(timeout=_POLL)
                except queue.Empty:
                    continue
                if passage is None:
                    return
                if isinstance(passage, threading.Event):
                    passage.set()
                    continue
                for begin in range(0, len(passage), STEP):
                    if self._stop.is_set():
                        return
                    share.push(passage.part(begin, min(begin + STEP, len(passage))), scratch)
        except BaseException as error:
            self._errors.append(error)
