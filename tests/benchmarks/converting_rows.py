"""Rows of V4.1 to row264, to a table and back, compared with `cp` of the same bytes.

Everything is in the page cache when it is read. Both flush what they write. The order of the
contestants changes from round to round.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from formats.checkpoints import deepseek_v41
from runner import Case
from small_tokenizers import byte_level_tokenizer

from engram_cli.commands.convert.to import convert
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.vocab.compress import compress_vocab

ROWS = 2_000_000  # of 264 bytes, in two layers: 528 MB
DIM = 256


def cases() -> Iterator[Case]:
    """Each conversion, without and with its verification, next to cp."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = folder / "tokenizer.json"
        byte_level_tokenizer().save(str(tokenizer))
        release = deepseek_v41(
            folder / "release",
            compress_vocab(tokenizer),
            tokenizer,
            dim=DIM,
            rows_per_head=ROWS // 48,
        ).path
        packed, table = folder / "packed", folder / "packed.zarr"
        run(release, "row264", packed)
        run(release, "table", table)
        ways = {
            "V4.1 to row264": (release, "row264"),
            "row264 to V4.1": (packed, "deepseek-v4.1"),
            "V4.1 to a table": (release, "table"),
            "a table to V4.1": (table, "deepseek-v4.1"),
        }
        for label, (source, to) in ways.items():
            yield _case(label, source, to, folder)


def _case(label: str, source: Path, to: str, folder: Path) -> Case:
    new = folder / "new"

    def timed(call: Callable[[], Any]) -> Callable[[], int]:
        def contestant() -> int:
            _remove(new)
            call()
            return 0

        return contestant

    return Case(
        name=label,
        amount=_size(source),
        unit="bytes",
        notes=f"{ROWS:,} rows of 264 bytes; cp copies the source. Outputs are removed first. Load "
        f"average of the machine at the start: {os.getloadavg()[0]:.1f}.",
        contestants={
            "cp, then fsync": timed(lambda: _cp(source, new)),
            "convert --no-verify": timed(lambda: run(source, to, new, verify=False)),
            "convert": timed(lambda: run(source, to, new)),
        },
        same=lambda first, second: first == second,
        before=lambda: _remove(new),
        rounds=5,
    )


def run(source: Path, to: str, out: Path, *, verify: bool = True) -> None:
    """Convert a source."""
    convert(ConvertRequest(source=source, to=to, out=out, verify=verify))


def _cp(source: Path, out: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    files = [str(file) for file in out.rglob("*") if file.is_file()]
    subprocess.run(["sync", *files], check=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
