"""docs/pictures/tiers.png from results/gpu_tiers.json and results/gpu_lookup.json.

    python tests/benchmarks/tiers_picture.py

Tokens a second by where the rows lie and how many tokens a call has. Needs matplotlib, which
nothing else here does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the choice of what draws

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "pictures" / "tiers.png"
OURS = ("engram", "engram, in place", "engram, staged")  # the fastest is drawn
Points = dict[int, float]


def main() -> None:
    """Draw."""
    document = json.loads((HERE / "results" / "gpu_tiers.json").read_text())
    tiers = document["cases"]
    lookup = json.loads((HERE / "results" / "gpu_lookup.json").read_text())["cases"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True)
    hbm = _hbm(lookup)
    left.plot(*_axes(hbm), "k--", label="rows in HBM (graph)")
    for name, style in (
        ("engram", "o-"),
        ("SGLang, UVA", "s-"),
        ("SGLang, UVA, sorted", "^-"),
        ("vLLM, UVA", "v-"),
        ("copy engine alone", "k:"),
    ):
        left.plot(*_axes(_points(tiers, "uniform, ", name)), style, label=name)
    left.set_title("uniformly random rows, all on the host")
    right.plot(*_axes(hbm), "k--", label="rows in HBM (graph)")
    for domain, colour in zip(_domains(tiers), ("C0", "C1", "C2", "C3"), strict=False):
        prefix = f"text, {domain}, "
        label = f"engram, {domain}"
        right.plot(*_axes(_points(tiers, prefix, "engram")), "o-", color=colour, label=label)
        theirs = _points(tiers, prefix, "SGLang, UVA, sorted")
        right.plot(*_axes(theirs), "^:", color=colour, label=f"SGLang, sorted, {domain}")
    right.set_title("held-out text, 5 % of the rows hot in HBM")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="tokens a call")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    left.set_ylabel("tokens/s, one layer of DeepSeek-V4.1's geometry")
    figure.suptitle(
        f"{document['machine']['gpu']}, one call at a time, commit {document['commit'][:7]}"
    )
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def _points(cases: list[dict[str, Any]], prefix: str, name: str) -> Points:
    """Tokens a second of a contestant by the size of the call."""
    found: Points = {}
    for case in cases:
        rest = case["name"].removeprefix(prefix)
        if rest == case["name"] or not rest.endswith("tokens"):
            continue
        names = OURS if name == "engram" else (name,)
        rates = [row["rate"] for row in case["rows"] if row["name"] in names]
        if rates:
            found[case["amount"]] = max(rates)
    return found


def _hbm(cases: list[dict[str, Any]]) -> Points:
    found: Points = {}
    for case in cases:
        if case["name"].startswith("deepseek-v4.1") and case["name"].endswith("tokens"):
            row = next(row for row in case["rows"] if row["name"] == "engram")
            found[case["tokens"]] = case["tokens"] / row["median_us"] * 1e6
    return found


def _domains(cases: list[dict[str, Any]]) -> list[str]:
    return sorted({c["name"].split(", ")[1] for c in cases if c["name"].startswith("text, ")})


def _axes(points: Points) -> tuple[list[int], list[float]]:
    sizes = sorted(points)
    return sizes, [points[size] for size in sizes]


if __name__ == "__main__":
    main()
