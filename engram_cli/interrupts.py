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

MESSAGE, HINT = "interrupted", "run the same command again"
LINE = f"error: {MESSAGE} - {HINT}"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_owned = False  # whether this process is the command line, and not a program that calls it
_number: int = signal.SIGINT  # of the signal that came
_said = False  # whether the command has said that it was interrupted
_complete = False  # whether the command has done its work, and only prints its result


def code() -> int:
    """Return the exit code of an interrupted process: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _number


def said() -> bool:
    """Return whether the command has said that it was interrupted."""
    return _said


def came(number: int) -> None:
    """Note which signal came, for the exit code."""
    global _number
    _number = number


def terminated(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM as Python handles Ctrl-C: raise KeyboardInterrupt."""
    came(number)
    raise KeyboardInterrupt


RAISING = (signal.default_int_handler, terminated)  # handlers that raise KeyboardInterrupt


def before() -> None:
    """From here on an interrupt prints its line and ends the process."""
    global _owned
    _owned = True
    _install(_end_with_line, _end_with_line)


def during() -> None:
    """From here on an interrupt raises KeyboardInterrupt, SIGTERM as Ctrl-C does."""
    global _complete
    _complete = False
    came(signal.SIGINT)
    _tell(False)
    _install(signal.default_int_handler, terminated)
    if _owned:
        sys.unraisablehook = _unraisable


def complete() -> None:
    """From here on an interrupt changes nothing: the work is done, its result is being printed.

    For work that must not be done twice. In a program that calls engram, signals are left alone.
    """
    global _complete
    if _owned:
        _complete = True
        _install(_ignore, _ignore)


def leaving(*, said: bool) -> None:
    """From here on another interrupt ends the process, with its line unless that was `said`."""
    _tell(said)
    if _owned and not _complete:
        handler = _end if said else _end_with_line
        _install(handler, handler)


def _tell(said: bool) -> None:
    global _said
    _said = said


def _install(*handlers: Any) -> None:
    for each, handler in zip(_SIGNALS, handlers, strict=True):
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(each, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _end_with_line(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{LINE}\n".encode())
    _end(number, frame)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _unraisable(about: Any) -> None:
    """Say nothing of an interrupt in a callback, which cannot be raised there."""
    if not issubclass(about.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(about)
