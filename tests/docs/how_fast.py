"""docs/reference/how-fast.md: each stage, what limits it, and how near to that limit it runs.

    python tests/docs/how_fast.py

Every figure comes from a file of tests/benchmarks/results. Run it again when one of them changes.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PAGE = ROOT / "docs" / "reference" / "how-fast.md"
Found = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: the `limit` and what was `measured`, both per second or both in microseconds.

    `by`: what the limit is and how it was found. `left`: why the rest is lost, to read. `source`:
    the file of results, `limit_from` that of the limit where it is another. `bound`: False where
    the two cannot be divided.
    """

    name: str
    by: str
    limit: float
    measured: float
    unit: str
    source: str
    left: str
    bound: bool = True
    limit_from: str = ""

    @property
    def share(self) -> float:
        """Return which part of the limit is reached."""
        is_time = self.unit == "us"
        return self.limit / self.measured if is_time else self.measured / self.limit


@cache
def result(name: str) -> Found:
    """Return a file of results."""
    found: Found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def case(name: str, begin: str) -> Found:
    """Return the case of a file whose name begins so."""
    cases = [each for each in result(name)["cases"] if each["name"].startswith(begin)]
    assert cases, (
        f"{name}.json has no case '{begin}...': {[c['name'] for c in result(name)['cases']]}"
    )
    return cases[0]


def row(found: Found, begin: str) -> Found:
    """Return the contestant of a case whose name begins so."""
    rows: list[Found] = [each for each in found["rows"] if each["name"].startswith(begin)]
    assert rows, f"{found['name']} has no contestant '{begin}...'"
    return rows[0]


def cpu() -> list[Stage]:
    """Return the stages on a CPU."""
    text, counted = case("from_text", "engram-v1"), case("counting", "engram-v1")
    large, hashed = case("counting_v41", "deepseek-v4.1"), case("hashing", "engram-v1")
    filled, compressed = (
        case("filling", "engram-v1, next-token rows of a layer"),
        case("limits", "token"),
    )
    known, written = compressed["facts"], case("tables", "write given rows, float32, to memory")
    gathered, inspected = (
        case("tables", "gather 65,536 rows as stored"),
        case("inspecting", "all rows"),
    )
    cold, attached = case("disk_rows", "cold rows"), case("attaching", "attach of a table")
    columns = 16
    return [
        Stage(
            name="Text to statistics, two cores",
            by="`tokenizers` alone, which gives the same ids",
            limit=row(text, "tokenizers alone")["rate"],
            measured=row(text, "hash-stats")["rate"],
            unit="tokens",
            source="from_text",
            left="The tokenizer takes both cores nearly all of the time. Starting, the figures at "
            "the end and the counting itself come on top.",
        ),
        Stage(
            name="Compress token ids, one core",
            by="a copy: 8 bytes for each token",
            limit=known["copied_bytes_per_second"] / 8,
            measured=row(compressed, "engram")["rate"],
            unit="tokens",
            source="limits",
            left="A token is one read of a map of half a megabyte, which lies in the second cache "
            "and not in the first. Every id is checked.",
        ),
        Stage(
            name="Hash, 16 columns, one core",
            by="filling a buffer: 64 bytes of rows for each token",
            limit=known["filled_bytes_per_second"] / (4 * columns),
            measured=row(hashed, "engram, 1 core")["rate"],
            unit="tokens",
            source="hashing",
            limit_from="limits",
            left="Arithmetic, not memory: each column takes a product in float64, two conversions "
            "and a correction.",
        ),
        Stage(
            name="Count, 16 columns, one core",
            by="a loop that adds 1 to as many random counters and does nothing else",
            limit=counted["facts"]["random_increments_per_second"] / columns,
            measured=row(counted, "engram, 1 core")["rate"],
            unit="tokens",
            source="counting",
            left="It also hashes, samples and follows the growth. More than the loop is possible "
            "since n-grams that recur in a chunk are counted once.",
        ),
        Stage(
            name="Count, 24 columns of V4.1, one core",
            by="the same loop over 1.5 GB of counters",
            limit=large["facts"]["random_increments_per_second"] / 24,
            measured=row(large, "engram, 1 core")["rate"],
            unit="tokens",
            source="counting_v41",
            left="Counters that do not fit in a cache cost a read of memory each. engram sorts the "
            "hits by blocks of counters first.",
        ),
        Stage(
            name="Fill rows of 64 values, one core",
            by="a loop that adds as many vectors, picked by token, into one row",
            limit=known["row_adds_per_second"] / columns,
            measured=row(filled, "engram, 1 thread")["rate"],
            unit="tokens",
            source="filling",
            limit_from="limits",
            left="Pairs of an n-gram and a next token that recur are added once, times their "
            "number: so more than the loop is possible.",
        ),
        Stage(
            name="Write given rows to memory, two cores",
            by="`os.write` of the same bytes from two threads",
            limit=row(written, "plain files")["rate"],
            measured=row(written, "engram")["rate"],
            unit="bytes",
            source="tables",
            left="engram makes the rows and sums a checksum of each chunk.",
        ),
        Stage(
            name="Read rows of a table, in the page cache",
            by="`np.memmap.take` of one raw file",
            limit=row(gathered, "np.memmap.take")["rate"],
            measured=row(gathered, "engram")["rate"],
            unit="rows",
            source="tables",
            left="A table is several files; each row is looked for among them.",
        ),
        Stage(
            name="Inspect all float32 rows, two cores",
            by="`readinto` of the same bytes",
            limit=row(inspected, "readinto")["rate"],
            measured=row(inspected, "inspect --full, 2")["rate"],
            unit="bytes",
            source="inspecting",
            left="Norms and likeness are computed of every row. Quantised rows are decoded too, "
            "and reach less. Without `--full` a sample is read.",
        ),
        Stage(
            name="Attach a table of 20 M rows of 64 bfloat16 values, two cores",
            by="`cp -r`, which neither checks nor waits for the disk",
            limit=row(attached, "cp -r")["rate"],
            measured=row(attached, "engram attach")["rate"],
            unit="bytes",
            source="attaching",
            left="Each byte goes through two checksums, XXH64 of the table and SHA-256 of the "
            "bundle, and the bundle waits until the disk has it.",
        ),
        Stage(
            name="Read cold rows at random from a disk",
            by="reads past the page cache, 256 in flight",
            limit=row(cold, "past the page cache")["rate"],
            measured=row(cold, "engram, scales in memory, threads: 2")["rate"],
            unit="rows",
            source="disk_rows",
            left="Both keep the queue of the disk full; it makes little difference how.",
        ),
    ]


def gpu() -> list[Stage]:
    """Return the stages on a GPU."""
    copy = result("gpu_lookup")["device_copy_gb_s"]
    many = row(case("gpu_lookup", "deepseek-v4.1, layer 1, 16,384 tokens"), "engram")
    one = row(case("gpu_lookup", "deepseek-v4.1, layer 1, 1 tokens"), "engram")
    host = case("gpu_tiers", "uniform, 16,384 tokens, 8 calls")
    read = case("gpu_tiers", "text, manual, 16,384 tokens, 8 calls")
    disk = case("gpu_disk", "uniformly random rows")
    shard = row(case("gpu_shard", "16,384 tokens"), "peer loads")
    alone = case("gpu_gate", "gate, forward, 16,384 tokens")
    both = case("gpu_gate", "gate, forward and backward, 16,384")
    gate_copy = result("gpu_gate")["copy_gb_s"]

    def moved(found: Found, rate: float) -> float:
        return float(found["facts"]["least_bytes"]) / rate / 1e3

    return [
        Stage(
            name="Look-up in HBM, 16,384 tokens",
            by="the rows read and the vectors written, at the rate of a device copy",
            limit=many["gb_s"] / copy * many["median_us"],
            measured=many["median_us"],
            unit="us",
            source="gpu_lookup",
            left="Scales cost 64 bytes for 8: 320 bytes are read for a row of 264. The rest is "
            "the ramp at both ends.",
        ),
        Stage(
            name="Look-up in HBM, 1 token",
            by="latency: a launch and three loads, each of which needs the one before",
            limit=one["median_us"],
            measured=one["median_us"],
            unit="us",
            source="gpu_lookup",
            left="No bytes limit it: ids, vocabulary and rows are read one after the other.",
            bound=False,
        ),
        Stage(
            name="Rows in host memory, uniform ids, 16,384 tokens",
            by="the copy engine with the same bytes",
            limit=row(host, "copy engine")["median_us"],
            measured=row(host, "engram, staged")["median_us"],
            unit="us",
            source="gpu_tiers",
            left="Threads of the CPU gather rows from random places of 63 GB first, which is "
            "slower than PCIe takes them.",
        ),
        Stage(
            name="Rows in host memory, text, hot rows in HBM",
            by="the copy engine with all rows that were asked for",
            limit=row(read, "copy engine")["median_us"],
            measured=row(read, "engram, staged, the next")["median_us"],
            unit="us",
            source="gpu_tiers",
            left="Text repeats its n-grams: hot rows do not travel and others travel once, so "
            "less than the copy is possible.",
        ),
        Stage(
            name="Rows on disk, uniform",
            by="reads past the page cache, 256 in flight",
            limit=row(disk, "past the page cache")["rate"],
            measured=row(disk, "engram, rows and scales, threads: 1")["rate"],
            unit="rows",
            source="gpu_disk",
            left="The disk is busy nearly all the time; scales are read with the rows.",
        ),
        Stage(
            name="Rows over two GPUs, 16,384 tokens on each",
            by="remote rows at the rate of a copy from the other GPU",
            limit=shard["remote_gb_s"] / result("gpu_shard")["peer_copy_gb_s"] * shard["median_us"],
            measured=shard["median_us"],
            unit="us",
            source="gpu_shard",
            left="Single rows of 256 bytes cross NVLink as well as long copies do, but for the "
            "ramp at both ends.",
        ),
        Stage(
            name="Gate, forward, 16,384 tokens",
            by="every input read once and the output written once, at the rate of a device copy",
            limit=moved(alone, gate_copy),
            measured=1e6 * row(alone, "engram")["median_s"],
            unit="us",
            source="gpu_gate",
            left="Nothing is left.",
        ),
        Stage(
            name="Gate, forward and backward, 16,384 tokens",
            by="the same, with the gradients",
            limit=moved(both, gate_copy),
            measured=1e6 * row(both, "engram")["median_s"],
            unit="us",
            source="gpu_gate",
            left="The backward pass reads its inputs a second time to compute what the forward "
            "pass did not keep.",
        ),
        *training(copy),
    ]


def training(copy: float) -> list[Stage]:
    """Return the training steps of rows; the bytes follow from the rows that a step touches."""
    steps = case("gpu_training", "10,344,164 rows of 64 float32, uniform")
    vectors, width, distinct = 16_384 * 16, 256, int(steps["facts"]["distinct"])
    found = []
    for name, state in (("RowwiseAdagrad", 4), ("RowwiseAdam", 512)):
        # Look-up: rows read, vectors written. Gradients read. Step: rows and state, both ways.
        least = distinct * width + 2 * vectors * width + 2 * distinct * (width + state)
        found.append(
            Stage(
                name=f"Training step of rows, {name}, 16,384 tokens",
                by=f"{least / 1e6:,.0f} MB at the rate of a device copy: rows, vectors, gradients "
                "and state, each once",
                limit=least / copy / 1e3,
                measured=1e6 * row(steps, f"engram + {name}, CUDA graph")["median_s"],
                unit="us",
                source="gpu_training",
                left="Row numbers are sorted, so that sums are the same every time; the sort is "
                "a third of the step, in short launches.",
            )
        )
    return found


def table(stages: list[Stage]) -> str:
    """Return stages as a table."""
    lines = [
        "| stage | limit | measured | of the limit | from |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for each in stages:
        limit = _figure(each.limit, each.unit) if each.bound else "latency"
        if each.limit_from and _machine(each.limit_from) != _machine(each.source):
            limit += f" ({result(each.limit_from)['machine']['cpu']})"
        share = f"{100 * each.share:.0f} %" if each.bound else ""
        lines.append(
            f"| {each.name} | {limit} | {_figure(each.measured, each.unit)} | {share} "
            f"| [{each.source}](../benchmarks.md#{each.source}) |"
        )
    return "\n".join(lines)


def _figure(value: float, unit: str) -> str:
    if unit == "us":
        return f"{value:,.2f} us" if value < 10 else f"{value:,.0f} us"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            shown = value / size
            digits = 0 if shown >= 100 else 1
            return f"{shown:,.{digits}f} {prefix}{'B' if unit == 'bytes' else f' {unit}'}/s"
    return f"{value:,.0f} {unit}/s"


def reasons(stages: list[Stage]) -> str:
    """Return what the limits are, and what is left, as a list."""
    return "\n".join(_item(f"**{each.name}.** Limit: {each.by}. {each.left}") for each in stages)


def _item(line: str) -> str:
    return textwrap.fill(
        f"- {line}", 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _machine(name: str) -> str:
    machine = result(name)["machine"]
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    return f"{gpu}{machine['cpu']}, {machine['cores']} cores"


def scaling() -> list[str]:
    """Return the blocks about the number of cores, from the machines that were measured."""
    parts = []
    for name in ("scaling", "scaling_16"):
        if not (RESULTS / f"{name}.json").exists():
            continue
        cases = result(name)["cases"]
        cores = [each["cores"] for each in cases[0]["rows"]]
        head = ["stage", "one core", *(f"{n} cores" for n in cores[1:])]
        lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
        for found in cases:
            first = found["rows"][0]
            ratios = {each["cores"]: f"{each['ratio']:.1f}x" for each in found["rows"]}
            shown = [ratios.get(n, "") for n in cores[1:]]
            lines.append(
                f"| {found['name']} | {_figure(first['rate'], 'tokens')} | {' | '.join(shown)} |"
            )
        said = "".join(f" {note}" for note in [result(name).get("notes")] if note)
        parts += [f"{_machine(name)}.{said}", "\n".join(lines)]
    if len(parts) == 2:
        parts.append("A machine with sixteen cores has not been measured yet.")
    return parts


def page() -> str:
    """Return the page."""
    of_cpu, of_gpu = cpu(), gpu()
    blocks = [
        "# How fast, and why",
        "Written by `python tests/docs/how_fast.py` from the results of the benchmarks; do not "
        "edit.",
        "For each stage, this page puts what was measured next to the limit: the bytes that must "
        "move over a measured bandwidth, or the rate of the plainest program that does the same. "
        "What is missing to 100 % is what a faster engram could still gain. More than 100 % means "
        "that engram does less than the plain program, such as counting n-grams that recur once. "
        "Both figures of a line come from one machine, unless it names another. "
        "[Benchmarks](../benchmarks.md) has the rivals, the versions and all other cases.",
        "## On a CPU",
        table(of_cpu),
        reasons(of_cpu),
        "## On a GPU",
        f"{_machine('gpu_lookup')}. A device copy moves "
        f"{result('gpu_lookup')['device_copy_gb_s']:,} GB/s there, read and written. Rows are "
        "those of DeepSeek-V4.1 (24 columns of 256 bytes and 8 of scales); a training step has 16 "
        "columns of 64 float32.",
        table(of_gpu),
        reasons(of_gpu),
        "## More cores",
        "![How much faster hash-stats and filling are on more cores, one core = 1]"
        "(../pictures/scaling.svg)",
        "Each number of cores is a process that may use no other cores; ratios are against one "
        "core. Rates are those of a long corpus: fixed work, such as loading code and writing "
        "results, is left out. `python tests/benchmarks/scaling.py` measures it. Eight threads "
        "count at most: more of them would wait for Python's interpreter between their compiled "
        "loops. Text also needs tokenizing, which takes all cores.",
        *scaling(),
    ]
    return "\n\n".join(map(_wrapped, blocks)) + "\n"


def _wrapped(block: str) -> str:
    if block.startswith(("|", "#", "- ", "!")) or "\n" in block:
        return block
    return textwrap.fill(block, 100, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
