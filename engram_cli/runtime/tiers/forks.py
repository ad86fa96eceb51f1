"""What a forked child process must make again: it has none of its parent's threads.

A lock that one of them held stays locked in the child, and what it was asked for never comes.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An object with threads or locks."""

    def after_fork(self) -> None:
        """Make them again, in a child process."""
        ...


_alive: weakref.WeakSet[Forkable] = weakref.WeakSet()


def renew_in_children(thing: Forkable) -> None:
    """Have `thing.after_fork` called in each child process that is forked while it lives."""
    _alive.add(thing)


def _renew() -> None:
    for thing in list(_alive):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
