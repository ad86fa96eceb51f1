"""Test vectors for another implementation of the hash, and the check of its answers.

    python examples/check_a_port.py golden.json theirs.json

The port here is a plain function, for schemes that XOR. Replace `rows_of` by a call of yours:
if it is wrong, engram names the fault.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from engram_cli import GoldenRequest, golden


def rows_of(layout: dict[str, Any], layer: dict[str, Any], ids: list[int]) -> list[list[int]]:
    """Return the rows of one sequence of compressed ids: for each token one in each column."""
    multipliers = [int(text) for text in layer["multipliers"]]
    found = []
    for at in range(len(ids)):
        rows: list[int] = []
        for order in layout["orders"]:
            mixed = 0
            for lag in range(order):
                token = ids[at - lag] if lag <= at else layout["filler_id"]
                mixed ^= (token * multipliers[lag] + 2**63) % 2**64 - 2**63  # wraps at 64 bits
            for _ in range(layout["heads"]):
                column = len(rows)
                rows.append(layer["offsets"][column] + mixed % layer["moduli"][column])
        found.append(rows)
    return found


def main(vectors: Path, theirs: Path, preset: str) -> None:
    """Write the vectors of a preset, answer them with `rows_of`, and compare."""
    golden(GoldenRequest(preset=preset, out=vectors, force=True))
    document = json.loads(vectors.read_text(encoding="utf-8"))
    layout = document["layout"]
    cases = [
        {
            "name": case["name"],
            "rows": {
                str(layer["layer"]): rows_of(layout, layer, case["compressed"])
                for layer in layout["layers"]
            },
        }
        for case in document["cases"]
        if "dead" not in case and "padding" not in case  # this port has no images and no batches
    ]
    answers = {"format": "engram-golden", "version": 1, "cases": cases}
    theirs.write_text(json.dumps(answers), encoding="utf-8")

    check = golden(GoldenRequest(preset=preset, check=theirs)).check
    assert check is not None
    for step in check.steps:
        print(f"{step.name}: {step.result}")
    print("all rows are equal" if check.equal else f"the first step that differs: {check.first}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("theirs", type=Path)
    parser.add_argument("--preset", default="deepseek-v4.1")
    main(**vars(parser.parse_args()))
