"""How many processors this process may use."""

from __future__ import annotations

import os
import sys


def processors() -> int:
    """The processors that the system lets this process run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
