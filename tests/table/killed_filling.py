"""Kills corpus-filled builds at many steps: run as a script with a folder, it prints what it found.

As `table.killed`, with a corpus that is tokenised, tallied and summed on the way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scripts import dies
from table.filled import fill, fill_spec, matrix_vectors, write_corpus
from table.killed import clear, kill_at, state
from table.tables import mapped_layout

from engram_cli.table.inits.corpus import filled, tokens
from engram_cli.table.places import scratch_folder

STEPS = (3, 8, 17, 30, 47, 68, 93, 122)


def main(folder: Path) -> None:
    """Print how many builds were killed, and every state that a reader found afterwards."""
    filled.LEAST_MEMORY = 1  # several passes
    tokens.KEEP_SECONDS = 0.0
    expected = once(folder / "whole.zarr")
    out, states = folder / "t.zarr", []
    for step in STEPS:
        clear(out)
        while died(out, step):
            states.append(state(out, expected))
            step += 25
        states.append(state(out, expected))
        assert states[-1] == "whole", states
        assert not scratch_folder(out).exists()
    print(json.dumps({"killed": len(states) - len(STEPS), "states": sorted(set(states))}))


def once(out: Path) -> str:
    """Build the table, or go on; its digest."""
    layout = mapped_layout()
    file = write_corpus(scratch_folder(out), layout)
    spec = fill_spec(layout, file, matrix_vectors(layout), memory=30_000)
    return fill(out, spec).digest


def died(out: Path, step: int) -> bool:
    """Build in a child that kills itself at `step`; whether it came to that."""

    def work() -> None:
        kill_at(step, out.parent)
        if not out.exists():
            once(out)

    return dies(work, f"a build to step {step}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
