"""Timing of calls that end on a device, host threads included, and cases of the results."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Calls = Sequence[Callable[[], Any]]
ROW_BYTES = 24 * 264  # of a token, at V4.1's geometry


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_at_a_time(contestants: dict[str, Calls], device: torch.device, rounds: int) -> Any:
    """Seconds of each call, from the host's clock until its result is on the device.

    Contestants take turns, each time in another order. The inputs of a turn are used by nobody
    just before: who reads the rows that another one has read finds their pages known to the GPU.
    The first round warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for place, name in enumerate(shuffled(list(contestants), turn)):
            calls = contestants[name]
            call = calls[(turn * len(contestants) + place) % len(calls)]
            wait(device)
            begin = time.perf_counter()
            call()
            wait(device)
            if turn:
                times[name].append(time.perf_counter() - begin)
    return times


def shuffled(names: list[str], turn: int) -> list[str]:
    """The names in a random order, the same for a turn in every run.

    In turns that only begin elsewhere each would always follow the same other one, whose code may
    be in the caches of the CPU: 240 and 321 us were measured of one code path.
    """
    return random.Random(turn).sample(names, len(names))


def in_a_row(runs: dict[str, tuple[Callable[[], Any], int]], device: torch.device) -> Any:
    """Seconds a call of runs that make several, one after another without a wait between."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(4):
        for name in shuffled(list(runs), turn):
            run, count = runs[name]
            wait(device)
            begin = time.perf_counter()
            run()
            wait(device)
            if turn:
                times[name].append((time.perf_counter() - begin) / count)
    return times


def case(
    name: str,
    tokens: int,
    times: dict[str, list[float]],
    *,
    base: str | None = None,
    notes: str = "",
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A case of look-ups of `tokens` tokens from seconds; `base` is what ratios are against."""
    medians = {key: statistics.median(found) for key, found in times.items()}
    against = medians[base if base in medians else next(iter(medians))]
    rows = []
    for key, median in medians.items():
        rows.append(
            {
                "name": key,
                "median_us": round(median * 1e6, 2),
                "min_us": round(min(times[key]) * 1e6, 2),
                "max_us": round(max(times[key]) * 1e6, 2),
                "rate": round(tokens / median),
                "gb_s": round(tokens * ROW_BYTES / median / 1e9, 2),
                "ratio": round(against / median, 2),
            }
        )
    return {
        "name": name,
        "amount": tokens,
        "unit": "tokens",
        "notes": notes,
        "facts": facts or {},
        "rows": rows,
    }


def show(case: dict[str, Any]) -> None:
    """Print a case in short."""
    print(f"-- {case['name']}")
    for row in case["rows"]:
        line = f"   {row['name']:44} {row['median_us']:11,.1f} us {row['rate']:12,} tok/s "
        print(line + f"{row['gb_s']:7.2f} GB/s x{row['ratio']}", flush=True)
    if case["facts"]:
        print(f"   {case['facts']}", flush=True)
