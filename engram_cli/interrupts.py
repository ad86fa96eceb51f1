"""Ctrl-C and SIGTERM from the first import to the last moment: one line, however often it comes.

Python raises KeyboardInterrupt wherever it is, also where nothing can catch it: in an import, in a
callback, while it leaves. Before a command begins and after it has ended there is nothing to clean
up, so the process ends at once; between, the command cleans up and says that it was interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

LINE = "error: interrupted - run the same command again"
CODE = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_owned = False  # whether this process is the command line, and not a program that calls it


def before() -> None:
    """From here on an interrupt prints its line and ends the process."""
    global _owned
    _owned = True
    _install(_end_with_line)


def during() -> None:
    """From here on an interrupt raises KeyboardInterrupt, SIGTERM as Ctrl-C does."""
    _install(signal.default_int_handler)
    if _owned:
        sys.unraisablehook = _unraisable


def leaving(*, said: bool) -> None:
    """From here on another interrupt ends the process, with its line unless that was `said`."""
    if _owned:
        _install(_end if said else _end_with_line)


def _install(handler: Any) -> None:
    for each in _SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(each, handler)


def _end_with_line(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{LINE}\n".encode())
    _end(number, frame)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(CODE)


def _unraisable(about: Any) -> None:
    """Say nothing of an interrupt in a callback, which cannot be raised there."""
    if not issubclass(about.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(about)
