"""docs/pictures/shard.png from results/gpu_shard.json.

    python tests/benchmarks/shard_picture.py

Time of a look-up by how many tokens it has and where the rows are. Needs matplotlib, as
tiers_picture.py does.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the choice of what draws

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "pictures" / "shard.png"
STYLES = {
    "all rows local": ("k--", "all rows on this GPU"),
    "peer loads, one launch": ("C0o-", "over two GPUs, loads over NVLink (engram)"),
    "NCCL, bounded messages": ("C1s-", "over two GPUs, NCCL, bounded messages"),
    "NCCL, counts first": ("C1s:", "over two GPUs, NCCL, counts first"),
    "rows on the host": ("C2^-", "on the host (engram)"),
}


def main() -> None:
    """Draw."""
    document = json.loads((HERE / "results" / "gpu_shard.json").read_text())
    figure, axes = plt.subplots(figsize=(8, 5))
    for name, (style, label) in STYLES.items():
        points = {
            case["tokens"]: row["median_us"]
            for case in document["cases"]
            for row in case["rows"]
            if row["name"] == name
        }
        axes.plot(list(points), list(points.values()), style, label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="tokens of a call on each GPU, both at once",
        ylabel="microseconds a call, one layer of DeepSeek-V4.1",
        title=f"{document['machine']['gpu']}, commit {document['commit'][:7]}",
    )
    axes.set_ylim(1, 40_000)  # room for the legend
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
