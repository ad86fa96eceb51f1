"""What counting will take is said, and refused when it is not there."""

from __future__ import annotations

import pytest
from stats.truth import layout_of

from engram_cli.errors import InputError
from engram_cli.stats.counting.memory import MemoryPlan, check_memory, plan_memory

LAYOUT = layout_of(moduli=(10**6,) * 4, heads=2, layers=(1, 2))


def test_counters_take_four_bytes_a_row_and_layer() -> None:
    plan = plan_memory(LAYOUT, 2**18, 2, text=True)
    assert plan.counters == 2 * 4 * (4 * 10**6 + 3)
    assert plan.total == plan.counters + plan.samples + plan.buffers
    assert plan.buffers > plan_memory(LAYOUT, 2**18, 2, text=False).buffers
    assert str(plan).startswith("memory: 32.0 MB counters + ")


def test_what_does_not_fit_is_refused() -> None:
    plan = MemoryPlan(counters=20 * 10**9, samples=10**9, buffers=10**9)
    check_memory(plan, 21 * 10**9)
    check_memory(plan, None)
    with pytest.raises(InputError, match=r"take 21.0 GB, 5.0 GB of memory are available"):
        check_memory(plan, 5 * 10**9)
