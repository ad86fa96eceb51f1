"""docs/pictures/scaling.svg: how much faster more cores make hash-stats and filling.

    python tests/docs/scaling_picture.py

The figures are those of scaling_16.json, or of scaling.json where there is none, in
tests/benchmarks/results. The picture has its own colours for light and dark pages.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "pictures" / "scaling.svg"
WIDTH, HEIGHT, LEFT, TOP, PLOT = 580, 390, 60, 64, 270
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 13px; fill: #59636e }
.back { fill: #ffffff } .grid { stroke: #d1d9e0 } .ideal { stroke: #8c959f; stroke-dasharray: 4 4 }
path, .line { fill: none; stroke-width: 2 }
.a { stroke: #3f63d6 } .b { stroke: #b35900 } .c { stroke: #1a7f37 } .d { stroke: #9333b5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b1 }
  .back { fill: #0d1117 } .grid { stroke: #30363d } .ideal { stroke: #6e7681 }
  .a { stroke: #7d9bff } .b { stroke: #f0883e } .c { stroke: #56d364 } .d { stroke: #d2a8ff }
}"""


def speeds() -> tuple[str, dict[str, dict[int, float]]]:
    """Return the processor, and for each stage how much faster so many cores are than one."""
    files = [RESULTS / f"{name}.json" for name in ("scaling_16", "scaling")]
    found: dict[str, Any] = json.loads(
        next(each for each in files if each.exists()).read_text(encoding="utf-8")
    )
    stages = {
        case["name"]: {row["cores"]: row["ratio"] for row in case["rows"]}
        for case in found["cases"]
    }
    return found["machine"]["cpu"], stages


def picture() -> str:
    """Return the picture as SVG, both axes by powers of two."""
    cpu, stages = speeds()
    cores = sorted({n for found in stages.values() for n in found})
    most = math.log2(max(cores))
    top = math.log2(max(max(cores), *(x for found in stages.values() for x in found.values())))

    def place(number: float, speed: float) -> tuple[float, float]:
        across, up = math.log2(number) / most, math.log2(max(speed, 0.5)) / top
        return LEFT + across * (WIDTH - LEFT - 170), TOP + PLOT * (1 - up)

    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" class="back"/>',
        '<text x="14" y="24" class="title">Speed by the number of cores, one core = 1</text>',
        f'<text x="14" y="45" class="small">{cpu}; dashed: as many times faster as cores</text>',
    ]
    for number in cores:
        x, y = place(number, number)
        low, right = place(1, 1)[1], place(max(cores), 1)[0]
        parts += [
            f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{low:.1f}" class="grid"/>',
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" class="grid"/>',
            f'<text x="{x:.1f}" y="{low + 20:.1f}" text-anchor="middle" class="small">{number}'
            "</text>",
            f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end" class="small">{number}</text>',
        ]
    (x1, y1), (x2, y2) = place(1, 1), place(max(cores), max(cores))
    parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="ideal"/>')
    labels = {name: place(*list(found.items())[-1]) for name, found in stages.items()}
    spread = _apart({name: y for name, (_, y) in labels.items()})
    for kind, (name, found) in zip("abcd", stages.items(), strict=False):
        points = " L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*own) for own in found.items()))
        parts += [
            f'<path d="M{points}" class="{kind}"/>',
            f'<line x1="{labels[name][0] + 6:.1f}" y1="{spread[name]:.1f}" '
            f'x2="{labels[name][0] + 16:.1f}" y2="{spread[name]:.1f}" class="line {kind}"/>',
            f'<text x="{labels[name][0] + 20:.1f}" y="{spread[name] + 5:.1f}" class="small">{name}'
            "</text>",
        ]
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 10}" class="small">cores</text>')
    said = "; ".join(
        f"{name}: " + ", ".join(f"{n} cores {speed:.1f}" for n, speed in found.items())
        for name, found in stages.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Speed by cores. {said}">\n'
        f"<style>{STYLE}\n</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _apart(heights: dict[str, float]) -> dict[str, float]:
    """Return the heights of labels, moved down where two would lie over each other."""
    found: dict[str, float] = {}
    last = -math.inf
    for name, height in sorted(heights.items(), key=lambda each: each[1]):
        last = found[name] = max(height, last + 18)
    return found


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
