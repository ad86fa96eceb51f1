"""The stages of docs/reference/how-fast.md: what limits each, and how near to that limit it runs.

Every figure comes from a file of tests/benchmarks/results.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
Found = dict[str, Any]
Limit = str | Callable[[Found, Found], float]
COLUMNS = 16


@dataclass(frozen=True)
class Stage:
    """A stage: the limit and what was measured, both per second or both in microseconds.

    `at`: the file of results, and how the names of the case and of the contestant measured begin.
    `against`: the contestant of the same case that is the limit, or a function that computes the
    limit from the case and the contestant measured. `unit`: what is counted per second, or "us".
    `by`: what the limit is and how it was found. `left`: why the rest is lost, to read. `bound`:
    False where the two cannot be divided. `limit_from`: the limit's file where it is another.
    """

    name: str
    at: tuple[str, str, str]
    against: Limit
    unit: str
    by: str
    left: str
    bound: bool = True
    limit_from: str = ""

    @property
    def source(self) -> str:
        """Return the file of results."""
        return self.at[0]

    @property
    def measured(self) -> float:
        """Return what was measured."""
        return self._figure(self.at[2])

    @property
    def limit(self) -> float:
        """Return the limit."""
        if isinstance(self.against, str):
            return self._figure(self.against)
        found = case(*self.at[:2])
        return self.against(found, row(found, self.at[2]))

    @property
    def share(self) -> float:
        """Return which part of the limit is reached."""
        is_time = self.unit == "us"
        return self.limit / self.measured if is_time else self.measured / self.limit

    def _figure(self, begin: str) -> float:
        """Return the figure of a contestant of the case."""
        found = row(case(*self.at[:2]), begin)
        if self.unit != "us":
            return float(found["rate"])
        return float(found["median_us"] if "median_us" in found else 1e6 * found["median_s"])


@cache
def result(name: str) -> Found:
    """Return a file of results."""
    found: Found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def case(name: str, begin: str) -> Found:
    """Return the case of a file whose name begins so."""
    return _named(result(name)["cases"], begin, f"{name}.json")


def row(found: Found, begin: str) -> Found:
    """Return the contestant of a case whose name begins so."""
    return _named(found["rows"], begin, found["name"])


def _named(every: list[Found], begin: str, where: str) -> Found:
    for each in every:
        if each["name"].startswith(begin):
            return each
    raise LookupError(f"{where} has no '{begin}...': {[each['name'] for each in every]}")


def fact(name: str, amount: int) -> Limit:
    """Return the limit that a fact of the case gives: `amount` of it make a unit."""
    return lambda found, _: found["facts"][name] / amount


def known(name: str, amount: int) -> Limit:
    """Return the limit that a fact of the `limits` benchmark gives."""
    return lambda *_: case("limits", "token")["facts"][name] / amount


def moved(found: Found, _: Found) -> float:
    """Return the microseconds that the bytes of a gate take at the rate of a device copy."""
    return float(found["facts"]["least_bytes"]) / result("gpu_gate")["copy_gb_s"] / 1e3


def copied(_: Found, own: Found) -> float:
    """Return the microseconds that the bytes of a look-up take at the rate of a device copy."""
    return float(own["gb_s"] / result("gpu_lookup")["device_copy_gb_s"] * own["median_us"])


def peer_copied(_: Found, own: Found) -> float:
    """Return the microseconds that remote rows take at the rate of a copy from the other GPU."""
    return float(own["remote_gb_s"] / result("gpu_shard")["peer_copy_gb_s"] * own["median_us"])


def cpu() -> list[Stage]:
    """Return the stages on a CPU."""
    return [
        Stage(
            "Text to statistics, two cores",
            ("from_text", "engram-v1", "hash-stats"),
            "tokenizers alone",
            "tokens",
            by="`tokenizers` alone, which gives the same ids",
            left="The tokenizer takes both cores nearly all of the time. Starting, the figures at "
            "the end and the counting itself come on top.",
        ),
        Stage(
            "Compress token ids, one core",
            ("limits", "token", "engram"),
            fact("copied_bytes_per_second", 8),
            "tokens",
            by="a copy: 8 bytes for each token",
            left="A token is one read of a map of half a megabyte, which lies in the second cache "
            "and not in the first. Every id is checked.",
        ),
        Stage(
            "Hash, 16 columns, one core",
            ("hashing", "engram-v1", "engram, 1 core"),
            known("filled_bytes_per_second", 4 * COLUMNS),
            "tokens",
            by="filling a buffer: 64 bytes of rows for each token",
            left="Arithmetic, not memory: each column takes a product in float64, two conversions "
            "and a correction.",
            limit_from="limits",
        ),
        Stage(
            "Count, 16 columns, one core",
            ("counting", "engram-v1", "engram, 1 core"),
            fact("random_increments_per_second", COLUMNS),
            "tokens",
            by="a loop that adds 1 to as many random counters and does nothing else",
            left="It also hashes, samples and follows the growth. More than the loop is possible "
            "since n-grams that recur in a chunk are counted once.",
        ),
        Stage(
            "Count, 24 columns of V4.1, one core",
            ("counting_v41", "deepseek-v4.1", "engram, 1 core"),
            fact("random_increments_per_second", 24),
            "tokens",
            by="the same loop over 1.5 GB of counters",
            left="Counters that do not fit in a cache cost a read of memory each. engram sorts the "
            "hits by blocks of counters first.",
        ),
        Stage(
            "Fill rows of 64 values, one core",
            ("filling", "engram-v1, next-token rows of a layer", "engram, 1 thread"),
            known("row_adds_per_second", COLUMNS),
            "tokens",
            by="a loop that adds as many vectors, picked by token, into one row",
            left="Pairs of an n-gram and a next token that recur are added once, times their "
            "number: so more than the loop is possible.",
            limit_from="limits",
        ),
        Stage(
            "Write given rows to memory, two cores",
            ("tables", "write given rows, float32, to memory", "engram"),
            "plain files",
            "bytes",
            by="`os.write` of the same bytes from two threads",
            left="engram makes the rows and sums a checksum of each chunk.",
        ),
        Stage(
            "Read rows of a table, in the page cache",
            ("tables", "gather 65,536 rows as stored", "engram"),
            "np.memmap.take",
            "rows",
            by="`np.memmap.take` of one raw file",
            left="A table is several files; each row is looked for among them.",
        ),
        Stage(
            "Inspect all float32 rows, two cores",
            ("inspecting", "all rows", "inspect --full, 2"),
            "readinto",
            "bytes",
            by="`readinto` of the same bytes",
            left="Norms and likeness are computed of every row. Quantised rows are decoded too, "
            "and reach less. Without `--full` a sample is read.",
        ),
        Stage(
            "Attach a table of 20 M rows of 64 bfloat16 values, two cores",
            ("attaching", "attach of a table", "engram attach"),
            "cp -r",
            "bytes",
            by="`cp -r`, which neither checks nor waits for the disk",
            left="Each byte goes through two checksums, XXH64 of the table and SHA-256 of the "
            "bundle, and the bundle waits until the disk has it.",
        ),
        Stage(
            "Read cold rows at random from a disk",
            ("disk_rows", "cold rows", "engram, scales in memory, threads: 2"),
            "past the page cache",
            "rows",
            by="reads past the page cache, 256 in flight",
            left="Both keep the queue of the disk full; it makes little difference how.",
        ),
    ]


def gpu() -> list[Stage]:
    """Return the stages on a GPU."""
    return [
        Stage(
            "Look-up in HBM, 16,384 tokens",
            ("gpu_lookup", "deepseek-v4.1, layer 1, 16,384 tokens", "engram"),
            copied,
            "us",
            by="the rows read and the vectors written, at the rate of a device copy",
            left="Scales cost 64 bytes for 8: 320 bytes are read for a row of 264. The rest is "
            "the ramp at both ends.",
        ),
        Stage(
            "Look-up in HBM, 1 token",
            ("gpu_lookup", "deepseek-v4.1, layer 1, 1 tokens", "engram"),
            "engram",
            "us",
            by="latency: a launch and three loads, each of which needs the one before",
            left="No bytes limit it: ids, vocabulary and rows are read one after the other.",
            bound=False,
        ),
        Stage(
            "Rows in host memory, uniform ids, 16,384 tokens",
            ("gpu_tiers", "uniform, 16,384 tokens, 8 calls", "engram, staged"),
            "copy engine",
            "us",
            by="the copy engine with the same bytes",
            left="Threads of the CPU gather rows from random places of 63 GB first, which is "
            "slower than PCIe takes them.",
        ),
        Stage(
            "Rows in host memory, text, hot rows in HBM",
            ("gpu_tiers", "text, manual, 16,384 tokens, 8 calls", "engram, staged, the next"),
            "copy engine",
            "us",
            by="the copy engine with all rows that were asked for",
            left="Text repeats its n-grams: hot rows do not travel and others travel once, so "
            "less than the copy is possible.",
        ),
        Stage(
            "Rows on disk, uniform",
            ("gpu_disk", "uniformly random rows", "engram, rows and scales, threads: 1"),
            "past the page cache",
            "rows",
            by="reads past the page cache, 256 in flight",
            left="The disk is busy nearly all the time; scales are read with the rows.",
        ),
        Stage(
            "Rows over two GPUs, 16,384 tokens on each",
            ("gpu_shard", "16,384 tokens", "peer loads"),
            peer_copied,
            "us",
            by="remote rows at the rate of a copy from the other GPU",
            left="Single rows of 256 bytes cross NVLink as well as long copies do, but for the "
            "ramp at both ends.",
        ),
        Stage(
            "Gate, forward, 16,384 tokens",
            ("gpu_gate", "gate, forward, 16,384 tokens", "engram"),
            moved,
            "us",
            by="every input read once and the output written once, at the rate of a device copy",
            left="Nothing is left.",
        ),
        Stage(
            "Gate, forward and backward, 16,384 tokens",
            ("gpu_gate", "gate, forward and backward, 16,384", "engram"),
            moved,
            "us",
            by="the same, with the gradients",
            left="The backward pass reads its inputs a second time to compute what the forward "
            "pass did not keep.",
        ),
        *training(),
    ]


def training() -> list[Stage]:
    """Return the training steps of rows; the bytes follow from the rows that a step touches."""
    name = "10,344,164 rows of 64 float32, uniform"
    vectors, width = 16_384 * 16, 256
    distinct = int(case("gpu_training", name)["facts"]["distinct"])
    copy = result("gpu_lookup")["device_copy_gb_s"]
    found = []
    for optimiser, state in (("RowwiseAdagrad", 4), ("RowwiseAdam", 512)):
        # Look-up: rows read, vectors written. Gradients read. Step: rows and state, both ways.
        least = distinct * width + 2 * vectors * width + 2 * distinct * (width + state)
        found.append(
            Stage(
                f"Training step of rows, {optimiser}, 16,384 tokens",
                ("gpu_training", name, f"engram + {optimiser}, CUDA graph"),
                lambda *_, least=least: least / copy / 1e3,
                "us",
                by=f"{least / 1e6:,.0f} MB at the rate of a device copy: rows, vectors, gradients "
                "and state, each once",
                left="Row numbers are sorted, so that sums are the same every time; the sort is "
                "a third of the step, in short launches.",
            )
        )
    return found
