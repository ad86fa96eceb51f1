"""Ctrl-C while a corpus is counted: put off until what was counted is kept, but not for long."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 2.0  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def put_off(asked: threading.Event, patience: float = PATIENCE) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM set `asked` in the place of raising KeyboardInterrupt.

    That comes with the next one, after `patience` seconds, or at the end of the block. Only signals
    that would raise it are taken, and only in the main thread, which alone may handle any.
    """
    taken = [each for each in _SIGNALS if signal.getsignal(each) is signal.default_int_handler]
    main = threading.main_thread().ident
    if not taken or main is None or main != threading.get_ident():
        yield
        return
    over = threading.Event()

    def heard(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def watch() -> None:
        asked.wait()
        if not over.wait(patience):
            signal.pthread_kill(main, taken[0])

    # Begun now: a handler must not wait for the locks that beginning a thread takes.
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
            signal.signal(each, signal.default_int_handler)
        over.set()
        asked.set()  # whether or not it was: the watcher is to end
        watcher.join()
