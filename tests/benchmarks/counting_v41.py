"""Token ids to row hits at V4.1's geometry: the work of `counting`, with 1.5 GB of counters."""

from __future__ import annotations

from collections.abc import Iterator

from counting import case
from runner import Case


def cases() -> Iterator[Case]:
    """One layer."""
    yield case("deepseek-v4.1", 2**25)
