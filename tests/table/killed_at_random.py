"""SIGKILL at random moments of builds and conversions, by the clock; run by hand, it prints JSON.

    PYTHONPATH=tests python tests/table/killed_at_random.py FOLDER [KILLS]

Each kill hits a child somewhere between its start and the time an undisturbed run takes; the next
child goes on. After every kill the place is read: there is no table, or a half-built one, or the
whole one; and whatever a run finishes has the digest of the undisturbed one.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scripts import dies
from table.killed import clear, state
from table.tables import table_spec

from engram_cli.formats.zarr_table import verify_table
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.build import BuildReport, build_store
from engram_cli.table.convert import conversion
from engram_cli.table.store import open_table

Make = Callable[[Path], BuildReport]
LAYOUT = hash_layout("qwen-ple", vocab_size=5000, eos_id=1, rows_per_head=20_000)
SHAPE: dict[str, Any] = {"dim": 160, "chunk_rows": 4000}


def main(folder: Path, kills: int) -> None:
    """Kill builds in two dtypes and conversions to two, and print what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.zarr"
    clear(source)
    build_store(table_spec(LAYOUT, **SHAPE), source)
    jobs: dict[str, Make] = {
        f"build {dtype}": _builder(dtype) for dtype in ("bfloat16", "fp8_e8m0")
    } | {f"convert to {dtype}": _converter(source, dtype) for dtype in ("int8", "fp8")}
    seeds = random.Random(0)
    found = {name: killed(make, folder, kills, seeds) for name, make in jobs.items()}
    shutil.rmtree(source)
    print(json.dumps(found))


def killed(make: Make, folder: Path, kills: int, seeds: random.Random) -> dict[str, Any]:
    """Kill `make` so often; the states a reader found, and how many runs were finished."""
    whole = folder / "whole.zarr"
    clear(whole)
    begin = time.perf_counter()
    expected = make(whole).digest
    takes = time.perf_counter() - begin
    clear(whole)
    out = folder / "t.zarr"
    clear(out)
    states: Counter[str] = Counter()
    finished = done = 0
    while done < kills:
        if dies(partial(make, out), "a run", after=seeds.uniform(0, takes)):
            done += 1
            states[state(out, expected)] += 1
        if state(out, expected) == "whole":
            assert verify_table(out).ok
            finished += 1
            clear(out)
    make(out)
    assert state(out, expected) == "whole"
    assert verify_table(out).ok
    clear(out)
    return {"kills": done, "states": dict(states), "finished": finished + 1, "seconds": takes}


def _builder(dtype: str) -> Make:
    spec = table_spec(LAYOUT, dtype=dtype, **SHAPE)
    return lambda out: build_store(spec, out, threads=2)


def _converter(source: Path, dtype: str) -> Make:
    def convert(out: Path) -> BuildReport:
        spec = conversion(open_table(source), dtype, chunk_rows=SHAPE["chunk_rows"])
        return build_store(spec, out, threads=2)

    return convert


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50)
