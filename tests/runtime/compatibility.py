"""Writes docs/reference/compatibility.md from the tables that the test matrix runs.

    python tests/runtime/compatibility.py

test_compatibility.py fails while the page is not the one that these tables give.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "compatibility.md"


def page() -> str:
    """The page: families, modules and modes, each cell of which is a test."""
    from runtime.families import FAMILIES
    from runtime.modes import MODES
    from tiny_models import MODULES

    cells = len(FAMILIES) * len(MODULES) * len(MODES)
    names = ", ".join(f"`{name}`" for name in MODULES)
    lines = [
        "# Compatibility",
        "",
        "Written by `python tests/runtime/compatibility.py` from the tables of the test matrix; "
        "do not edit.",
        "",
        f"Every family below is tested with every module ({names}) in every mode: {cells} tests in "
        "`tests/runtime/test_matrix.py`, on tiny models with random weights in float32.",
        "In each the memory is identity when attached, detached it leaves the same bits, and what "
        "is generated equals one full forward without a cache: logits within 1e-5, tokens exactly.",
        "",
        "| family | `model_type` |",
        "| --- | --- |",
        *(f"| {name} | `{family.model_type}` |" for name, family in FAMILIES.items()),
        "",
        "Any other `nn.Module` works with `attach(model, bundle, layers=model.blocks)` where its "
        "layers take hidden states first.",
        "",
        "| mode | what is held |",
        "| --- | --- |",
        *(f"| {name} | {(mode.__doc__ or '').strip()} |" for name, mode in MODES.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    PAGE.write_text(page())
