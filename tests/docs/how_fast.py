"""docs/reference/how-fast.md: each stage, what limits it, and how near to that limit it runs.

    python tests/docs/how_fast.py

Every figure comes from a file of tests/benchmarks/results. Run it again when one of them changes.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where it is run as a program
from docs.stages import RESULTS, Stage, cpu, gpu, result

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "how-fast.md"


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
