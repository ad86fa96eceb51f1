"""Ctrl-C is put off for a while, once, and where it would have been Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from engram_cli.engines.local import put_off

HANDLED = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Both raise KeyboardInterrupt, as in the command."""
    before = [signal.signal(each, signal.default_int_handler) for each in HANDLED]
    yield
    for each, handler in zip(HANDLED, before, strict=True):
        signal.signal(each, handler)


def interrupted(*numbers: signal.Signals, patience: float = 60.0, then: float = 0.0) -> list[bool]:
    """Whether it was asked to end, after each signal that did not raise; `then` seconds of work."""
    asked, seen = threading.Event(), []
    with pytest.raises(KeyboardInterrupt), put_off(asked, patience):  # noqa: PT012  (in its midst)
        for number in numbers:
            signal.raise_signal(number)
            seen.append(asked.is_set())
        time.sleep(then)
        seen.append(True)
    assert all(signal.getsignal(each) is signal.default_int_handler for each in HANDLED)
    return seen


@pytest.mark.parametrize("number", HANDLED)
def test_it_comes_at_the_end_of_the_block(number: signal.Signals) -> None:
    assert interrupted(number) == [True, True]


def test_the_second_is_not_put_off() -> None:
    assert interrupted(signal.SIGTERM, signal.SIGINT) == [True]


def test_it_comes_when_patience_is_over() -> None:
    assert interrupted(signal.SIGINT, patience=0.05, then=60.0) == [True]


def test_where_nothing_comes_nothing_is_left() -> None:
    before = threading.active_count()
    with put_off(threading.Event()):
        pass
    assert threading.active_count() == before
    assert all(signal.getsignal(each) is signal.default_int_handler for each in HANDLED)


def test_other_handlers_and_threads_are_left_alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with put_off(threading.Event()):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def elsewhere() -> None:
        with put_off(threading.Event()):
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
