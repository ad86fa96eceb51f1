"""Comparing two equal tables of 5 GB, compared with `cmp` of their files; both in the page cache.

Set ENGRAM_DIFF_BYTES for another size, ENGRAM_DIFF_FOLDER for tables that are kept and used again.
`diffing_edits.py` measures which edits are found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runner import Case

from engram_cli.commands.diff.command import diff
from engram_cli.commands.requests.diff import DiffRequest
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec

SIZE = int(os.environ.get("ENGRAM_DIFF_BYTES", 5 * 10**9))
DIM, HEADS = 160, 16


def cases() -> Iterator[Case]:
    """One layer of 16 heads, bfloat16."""
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as own:
        folder = Path(os.environ.get("ENGRAM_DIFF_FOLDER", own))
        one, two = folder / "one.zarr", folder / "two.zarr"
        prepare(one, two)
        names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
        size = sum((one / name).stat().st_size for name in names)
        yield Case(
            name=f"two equal tables of {size / 1e9:.1f} GB, {DIM} x bfloat16",
            amount=2 * size,
            unit="bytes",
            notes="Contestants read both tables, and agree that they are equal. cmp runs once for "
            "each pair of files, one after another, as a shell would run it.",
            contestants={
                "cmp": lambda: _cmp(one, two, names),
                "diff, 1 thread": lambda: _diff(one, two, 1),
                f"diff, {threads} threads": lambda: _diff(one, two, threads),
            },
            same=lambda plain, compared: plain == compared == "equal",
            rounds=3,
            facts={"files": len(names), "page cache": "warm: both tables were read before"},
        )


def prepare(one: Path, two: Path) -> None:
    """Write both tables, unless they are there."""
    if not one.exists():
        _build(one)
    if not two.exists():
        shutil.copytree(one, two)
    os.sync()  # else the system writes the tables to the disk while it is timed


def _build(path: Path) -> None:
    layout = hash_layout(
        "qwen-ple",
        vocab_size=99_092,
        eos_id=1,
        rows_per_head=SIZE // (2 * DIM) // HEADS,
        heads=HEADS // 2,
        layers=(1,),
    )
    spec = TableSpec(layout=layout, dim=DIM, dtype="bfloat16", init=make_init("normal"))
    build_store(spec, path, threads=2)


def _cmp(one: Path, two: Path, names: list[Path]) -> str:
    for name in names:
        if subprocess.run(["cmp", "-s", one / name, two / name], check=False).returncode:
            return "changed"
    return "equal"


def _diff(one: Path, two: Path, threads: int) -> str:
    return diff(DiffRequest(before=one, after=two, threads=threads)).verdict
