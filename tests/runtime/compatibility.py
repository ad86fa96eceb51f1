"""Writes docs/reference/compatibility.md from the tables that the test matrix runs.

    python tests/runtime/compatibility.py

test_compatibility.py fails while the page is not the one that these tables give.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.families import Family

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "compatibility.md"


def _rows(families: dict[str, Family]) -> list[str]:
    return [f"| {name} | `{family.model_type}` |" for name, family in families.items()]


def page() -> str:
    """Return the page: families, modules and modes; each combination is a test."""
    from formats.interop import table as interop_table
    from runtime.families import FAMILIES, MORE_FAMILIES, STATE_FAMILIES
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
        "Each test checks three things: attaching the memory changes no output, detaching it "
        "leaves the same bits, and generation equals one full forward pass without a cache (logits "
        "within 1e-5, tokens exactly).",
        "",
        "| family | `model_type` |",
        "| --- | --- |",
        *_rows(FAMILIES),
        "",
        "## Greedy decoding of more families",
        "",
        "`tests/runtime/test_state_families.py` compares greedy texts and their logits with those "
        "of full forward passes. It covers families that keep a state in addition to keys and "
        "values or instead of them, and more families that keep keys and values.",
        "`python tests/runtime/greedy_texts.py` counts the texts that a cache changes: 0 of 20 in "
        "each family on this page, with transformers 5.0.0 and 5.24.0.",
        "",
        "| family | `model_type` |",
        "| --- | --- |",
        *_rows(STATE_FAMILIES | MORE_FAMILIES),
        "",
        "In encoder-decoder models the memory is in the decoder. T5 (`t5`) and BART (`bart`) are "
        "tested with and without a decoder mask, with greedy decoding and beam search "
        "(`tests/runtime/test_encoder_decoders.py`).",
        "",
        "## Limits",
        "",
        "- RWKV decodes one sequence at a time: transformers itself mixes up the sequences of a "
        "batch.",
        "- RecurrentGemma keeps its state inside the model in releases of transformers such as 5.0 "
        "and 5.8. There a decode step is refused.",
        "- Gemma 3n is refused when you attach a memory, because its layers carry several "
        "predictions of each hidden state.",
        "- Continuous batching (`generate_batch`) is refused: its requests end with the error.",
        "",
        "## Other models",
        "",
        "Any other `nn.Module` works with `attach(model, bundle, layers=model.blocks)` if its "
        "layers take hidden states as their first argument.",
        "",
        "## Files of other programs",
        "",
        "`convert` and the readers are tested with the packages themselves: each reads what engram "
        "writes, and engram reads what it writes (`tests/formats/`).",
        "",
        *interop_table(),
        "",
        "## Modes",
        "",
        "| mode | what the test checks |",
        "| --- | --- |",
        *(f"| {name} | {(mode.__doc__ or '').strip()} |" for name, mode in MODES.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    PAGE.write_text(page())
