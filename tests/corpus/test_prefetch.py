"""Items come in order from another thread; errors, ends and cancellation reach both sides."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import closing

import pytest

from engram_cli.corpus.stream import prefetch


def numbers(count: int, closed: list[int] | None = None) -> Generator[int, None, None]:
    try:
        yield from range(count)
    finally:
        if closed is not None:
            closed.append(threading.get_ident())


def started(
    source: Generator[int, None, None], cancel: threading.Event | None = None, last: bool = False
) -> Generator[int, None, None]:
    return prefetch(source, depth=2, cancel=cancel or threading.Event(), patience=60.0, last=last)


def test_items_in_order_and_the_source_is_closed() -> None:
    closed: list[int] = []
    assert list(started(numbers(100, closed))) == list(range(100))
    assert len(closed) == 1
    assert closed[0] != threading.get_ident()


def test_an_error_comes_after_the_items_before_it() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    line = started(failing())
    assert next(line) == 1
    with pytest.raises(ValueError, match="broken"):
        next(line)


def test_an_error_in_the_middle_of_a_line_is_not_taken_for_the_end() -> None:
    closed: list[int] = []
    cancel = threading.Event()

    def middle(source: Generator[int, None, None]) -> Generator[int, None, None]:
        with closing(source):
            for item in source:
                if item == 5:
                    raise ValueError("broken")
                yield item

    first = started(numbers(10**9, closed), cancel)
    with pytest.raises(ValueError, match="broken"):
        list(started(middle(first), cancel, last=True))
    assert len(closed) == 1


def test_closing_stops_the_whole_line() -> None:
    closed: list[int] = []
    cancel = threading.Event()

    def middle(source: Generator[int, None, None]) -> Generator[int, None, None]:
        with closing(source):
            yield from source

    line = started(middle(started(numbers(10**9, closed), cancel)), cancel, last=True)
    assert next(line) == 0
    before = threading.active_count()
    line.close()
    assert len(closed) == 1
    assert threading.active_count() == before - 2


def test_a_source_that_hangs_does_not_hold_up_the_end() -> None:
    release = threading.Event()
    cancel = threading.Event()

    def hanging() -> Generator[int, None, None]:
        yield 1
        release.wait(60)

    line = prefetch(hanging(), depth=2, cancel=cancel, patience=0.05, last=True)
    assert next(line) == 1
    begin = time.monotonic()
    line.close()
    release.set()
    assert time.monotonic() - begin < 30


def test_an_interrupt_while_waiting_cancels_before_it_joins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cancel = threading.Event()

    def silent() -> Generator[int, None, None]:
        cancel.wait(60)
        yield 1

    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    line = started(silent(), cancel, last=True)
    monkeypatch.setattr("engram_cli.corpus.stream._Channel.get", interrupted)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(line)
    assert time.monotonic() - begin < 30
