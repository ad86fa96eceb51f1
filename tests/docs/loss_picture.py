"""docs/pictures/loss.svg: what a memory, an adapter and both take off the held-out loss.

    python tests/docs/loss_picture.py

The figures are those of docs/quality.md (tests/benchmarks/quality/pretrained.json), means over
seeds. The picture has its own colours for light and dark pages.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "pictures" / "loss.svg"
FOUND = ROOT / "tests" / "benchmarks" / "quality" / "pretrained.json"
# The name in the file, its rates and layers, what the picture calls it, and the class of its bar.
ARMS = (
    ("memory, next-token rows", [2, 8, 14, 20], "memory", "memory"),
    ("LoRA r=64", [], "LoRA", "other"),
    ("LoRA r=64 and memory", [2, 14], "LoRA and memory", "memory"),
)
LEFT, TOP, HEIGHT, STEP, SCALE = 148, 64, 30, 46, 520
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 12.5px; fill: #59636e }
.memory { fill: #3f63d6 } .other { fill: #8c959f } .line { stroke: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b1 }
  .memory { fill: #7d9bff } .other { fill: #6e7681 } .line { stroke: #9da7b1 }
}"""


def losses() -> tuple[float, list[tuple[str, str, float, float]]]:
    """Return the loss of the bare model, and of each arm its label, class, loss and ms per step."""
    trainings = [each for each in json.loads(FOUND.read_text())["trainings"] if each["compiled"]]
    bare = next(each["held"]["docs"] for each in trainings if each["name"] == "bare")
    arms = []
    for name, layers, label, kind in ARMS:
        group = [each for each in trainings if each["name"] == name and each["layers"] == layers]
        rates = {(each["rate"], each["dense"], each["rows"]): 0 for each in group}
        by_rate = [
            [each for each in group if (each["rate"], each["dense"], each["rows"]) == rate]
            for rate in rates
        ]
        best = max(by_rate, key=len)  # the best rate was run with three seeds
        found = mean(each["held"]["docs"] for each in best)
        arms.append((label, kind, found, median(each["step_ms"] for each in best)))
    return bare, arms


def picture() -> str:
    """Return the picture as SVG."""
    bare, arms = losses()
    parts = [
        '<text x="0" y="18" class="title">SmolLM2-135M: what 300 steps on one domain take off the'
        " held-out loss</text>",
        f'<text x="0" y="40" class="small">Nats per token; {bare:.3f} before. Longer is better.'
        " Means of three seeds on one H200.</text>",
    ]
    for number, (label, kind, loss, ms) in enumerate(arms):
        y, width = TOP + number * STEP, (bare - loss) * SCALE
        after = f"{LEFT + width + 8:.1f}"
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 20}" text-anchor="end">{label}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{HEIGHT}" class="{kind}"/>',
            f'<text x="{after}" y="{y + 14}">-{bare - loss:.3f}, to {loss:.3f}</text>',
            f'<text x="{after}" y="{y + 29}" class="small">{ms:.0f} ms a step</text>',
        ]
    bottom = TOP + len(arms) * STEP - 8
    parts.append(f'<path d="M{LEFT} {TOP - 8}V{bottom}" class="line"/>')
    described = "; ".join(f"{label}: {loss:.3f}" for label, _, loss, _ in arms)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {bottom + 8}" role="img" '
        f'aria-label="Held-out loss. Model alone: {bare:.3f}; {described}">\n'
        f"<style>{STYLE}\n</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
