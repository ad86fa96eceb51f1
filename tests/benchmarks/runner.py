"""One runner for every benchmark: contestants checked, timed in turn, medians kept as JSON.

A benchmark module has `cases()`: named groups of contestants that must give equal results. Run

    python tests/benchmarks/runner.py hashing

with the package and its test extra installed; the figures go to tests/benchmarks/results, and
docs/benchmarks.md and docs/reference/how-fast.md are written again from all of them. Without a name
nothing is measured, and the pages are written.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "benchmarks.md"
RUNS = 5
PACKAGES = (
    "numpy",
    "numba",
    "tokenizers",
    "zarr",
    "pyarrow",
    "torch",
    "transformers",
    "triton",
    "fastokens",
    "engramdb-python",
    "engram-peft",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Contestants that do the same work: `amount` of `unit` a call; the first is the baseline.

    `amounts`: those of contestants that do less of the same work, for they are slow.
    `checks`: the same contestants giving all they compute, where keeping it would be timed too.
    `before`: called before every contestant, untimed. `rounds`: how often all are timed.
    `overhead`: the page says how much longer than the baseline each took.
    """

    name: str
    amount: float
    unit: str
    contestants: dict[str, Callable[[], Any]]
    same: Callable[[Any, Any], bool]
    checks: dict[str, Callable[[], Any]] | None = None
    before: Callable[[], None] | None = None
    rounds: int = RUNS
    overhead: bool = False
    amounts: dict[str, float] = field(default_factory=dict)
    notes: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def main(names: Iterable[str]) -> None:
    """Run the named benchmark modules, save their results, render the page."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    for name in names:
        module = importlib.import_module(name)
        result = {
            "benchmark": name,
            "about": (module.__doc__ or "").strip().splitlines()[0],
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "cases": [measure(case) for case in module.cases()],
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(page())
    how_fast = importlib.import_module("docs.how_fast")  # which has the same figures
    how_fast.PAGE.write_text(how_fast.page())


def measure(case: Case) -> dict[str, Any]:
    """Check that the contestants agree, then time them in turn, round after round."""
    outcomes = {name: call() for name, call in (case.checks or case.contestants).items()}
    first, *others = outcomes
    for other in others:
        if not case.same(outcomes[first], outcomes[other]):
            raise SystemExit(f"{case.name}: '{other}' does not equal '{first}'")
    outcomes.clear()
    if case.checks is not None:
        for call in case.contestants.values():  # warms up
            _prepare(case)
            call()
    seconds: dict[str, list[float]] = {name: [] for name in case.contestants}
    contestants = list(case.contestants.items())
    for turn in range(case.rounds):
        # Who comes first changes: what one leaves in caches and on the disk helps or hinders all.
        shift = turn % len(contestants)
        for name, call in contestants[shift:] + contestants[:shift]:
            _prepare(case)
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    rates = {
        name: case.amounts.get(name, case.amount) / statistics.median(times)
        for name, times in seconds.items()
    }
    base = rates[next(iter(case.contestants))]
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        rows.append(
            {
                "name": name,
                "median_s": round(median, 6),
                "min_s": round(min(times), 6),
                "max_s": round(max(times), 6),
                "rate": round(rates[name], 1),
                "ratio": round(rates[name] / base, 2),
            }
        )
        if case.overhead:  # round by round, since the machine's speed wanders
            first = seconds[next(iter(seconds))]
            more = statistics.median(a - b for a, b in zip(times, first, strict=True))
            rows[-1]["more_ms"] = round(1e3 * more, 1)
        print(f"{case.name:44} {name:34} {rates[name]:16,.0f} {case.unit}/s", flush=True)
    return {
        "name": case.name,
        "amount": case.amount,
        "unit": case.unit,
        "runs": case.rounds,
        "notes": case.notes,
        "facts": case.facts,
        "rows": rows,
    }


def _prepare(case: Case) -> None:
    if case.before is not None:
        case.before()


def machine() -> dict[str, Any]:
    """Return the machine that the results were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages involved."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit that the results belong to."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def page() -> str:
    """Return docs/benchmarks.md, made from all saved results."""
    parts = [
        "# Benchmarks",
        "Written by `python tests/benchmarks/runner.py NAME`; do not edit. Each contestant must "
        "first give the same result as the baseline, which is the first row of its table. Then all "
        "contestants are timed in turn, round after round; tables show medians. Rates hold for one "
        'machine in one run, so compare ratios. "engram" is this package.',
    ]
    for path in sorted(RESULTS.glob("*.json")):
        parts += shown(path.stem, json.loads(path.read_text()))
    return "\n\n".join(parts) + "\n"


def shown(name: str, result: dict[str, Any]) -> list[str]:
    """Return the blocks of the page that show a result."""
    machine = result["machine"]
    cpu = f"{machine['cpu']}, {machine['cores']} cores"
    if "gpu" in machine:
        cpu = f"{machine['gpu']}; {cpu}"
    used = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    parts = [f"## {name}", result["about"], f"{cpu}; {used}; commit {result['commit']}."]
    if "notes" in result:
        parts.append(result["notes"])
    if "rows" in result:
        parts.append(_versions_table(result["rows"]))
    if "table" in result:
        parts.append(_plain_table(**result["table"]))
    for case in result.get("cases", ()):
        parts.append(f"### {case['name']}")
        if "bound" in case:
            parts.append(_device_table(case))
            continue
        if case["notes"]:
            parts.append(case["notes"])
        if "gb_s" in case["rows"][0]:
            parts.append(_call_table(case))
            continue
        more = "more_ms" in case["rows"][0]
        table = [
            f"| contestant | {case['unit']}/s | ratio |" + " ms more |" * more,
            "| --- | ---: | ---: |" + " ---: |" * more,
        ]
        table += [_line(row) for row in case["rows"]]
        parts.append("\n".join(table))
    return parts


def _device_table(case: dict[str, Any]) -> str:
    """Return the table of a case timed on a GPU: microseconds per call instead of CPU rates."""
    table = ["| contestant | us | GB/s | ratio |", "| --- | ---: | ---: | ---: |"]
    table += [
        f"| {row['name']} | {row['median_us']:,.2f} | {row['gb_s']:,} | {row['ratio']:.2f} |"
        for row in case["rows"]
    ]
    bound = f"What bounds it: {case['bound']}.\n\n" if case["bound"] else ""
    return bound + "\n".join(table)


def _plain_table(columns: list[str], rows: list[list[Any]]) -> str:
    """Return the table of a benchmark that measures other things than rates."""
    lines = [columns, ["---:"] * len(columns), *(map(str, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _versions_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of two versions timed in turn by `versions.py`: microseconds per call."""
    table = [
        "| case | measured | before, us | after, us | after / before | of the fastest |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    table += [
        f"| {row['case']} | {row['contestant']} | {row['before_s'] * 1e6:,.1f} "
        f"| {row['after_s'] * 1e6:,.1f} | {row['ratio']:.2f} | {row['fastest_ratio']:.2f} |"
        for row in rows
    ]
    return "\n".join(table)


def _call_table(case: dict[str, Any]) -> str:
    """Return the table of a case whose calls use host threads: time, tokens and rows."""
    table = [
        "| contestant | us a call | tokens/s | GB/s of rows | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    table += [
        f"| {row['name']} | {row['median_us']:,.1f} | {row['rate']:,.0f} | {row['gb_s']:,.1f} "
        f"| {row['ratio']:.2f} |"
        for row in case["rows"]
    ]
    facts = "; ".join(f"{name}: {value}" for name, value in case["facts"].items())
    return "\n".join(table) + (f"\n\nStaged reads by engram: {facts}." if facts else "")


def _line(row: dict[str, Any]) -> str:
    more = f" {row['more_ms']:,.1f} |" if "more_ms" in row else ""
    rate = row["rate"]
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return f"| {row['name']} | {shown} | {row['ratio']:.2f} |{more}"


if __name__ == "__main__":
    main(sys.argv[1:])
