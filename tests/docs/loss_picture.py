"""docs/pictures/loss.svg: what a memory, an adapter and both take off the held-out loss.

    python tests/docs/loss_picture.py

The figures are those of docs/quality.md (tests/benchmarks/quality/pretrained.json), means over
seeds. The picture has its own colours for light and dark pages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "benchmarks" / "quality"))
from pretrained_page import GENTLE, LORA, MEMORY, Found  # noqa: E402

PICTURE = ROOT / "docs" / "pictures" / "loss.svg"
# A method, what the picture calls it, and the class of its bar.
METHODS = (
    (MEMORY, "memory", "memory"),
    (LORA, "LoRA", "other"),
    (GENTLE, "LoRA and memory", "memory"),
)
WIDTH, LEFT, TOP, BAR, STEP, SCALE = 560, 146, 84, 28, 44, 330
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 13px; fill: #59636e }
.back { fill: #ffffff } .memory { fill: #3f63d6 } .other { fill: #8c959f }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b1 }
  .back { fill: #0d1117 } .memory { fill: #7d9bff } .other { fill: #6e7681 }
}"""


def losses() -> tuple[float, list[tuple[str, str, float, float]]]:
    """Return the loss of the model alone, and of each method its label, class, loss and forgetting.

    What it forgets is the change of the loss on Python code.
    """
    found = Found("pretrained.json", "docs")
    rows = []
    for name, label, kind in METHODS:
        group = found.best[name]
        assert len(group) == 3
        forgets = mean(each["held"]["python"] for each in group) - found.bare["python"]
        rows.append((label, kind, mean(each["held"]["docs"] for each in group), forgets))
    return found.bare["docs"], rows


def picture() -> str:
    """Return the picture as SVG."""
    bare, methods = losses()
    height = TOP + len(methods) * STEP
    parts = [
        f'<rect width="{WIDTH}" height="{height}" rx="6" class="back"/>',
        '<text x="14" y="24" class="title">What 300 steps take off the held-out loss</text>',
        f'<text x="14" y="45" class="small">SmolLM2-135M on manuals; {bare:.3f} nats per token'
        " before.</text>",
        '<text x="14" y="64" class="small">Longer is better. Small figures: the loss on other text.'
        "</text>",
    ]
    for number, (label, kind, loss, forgets) in enumerate(methods):
        y, width = TOP + number * STEP, (bare - loss) * SCALE
        after = f"{LEFT + width + 8:.1f}"
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 19}" text-anchor="end">{label}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" class="{kind}"/>',
            f'<text x="{after}" y="{y + 12}">-{bare - loss:.3f}, to {loss:.3f}</text>',
            f'<text x="{after}" y="{y + 28}" class="small">Python code {forgets:+.3f}</text>',
        ]
    described = "; ".join(f"{label}: {loss:.3f}" for label, _, loss, _ in methods)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Held-out loss. Model alone: {bare:.3f}; {described}">\n'
        f"<style>{STYLE}\n</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
