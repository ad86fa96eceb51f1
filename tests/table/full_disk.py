"""Builds and converts on a disk that fills up: run with a mount point, inside a mount namespace.

What is free is asked for before a build; here that says there is room, as where others fill the
disk meanwhile. Prints as JSON what was said, what was left, and what became of it with more room.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

from table.tables import build

from engram_cli.commands.convert.command import ConvertRequest, convert_table
from engram_cli.errors import OutputError
from engram_cli.table import build as building
from engram_cli.table.store import open_table

TABLE: dict[str, Any] = {"dim": 512, "tokens": 3, "chunk_rows": 53}
Usage = namedtuple("Usage", "total used free")


def main(mount: Path, folder: Path) -> None:
    """Build and convert into `mount`, a small tmpfs, what also is made in `folder`."""
    building.shutil.disk_usage = lambda path: Usage(10**12, 0, 10**12)  # type: ignore[assignment]
    build(folder / "t.zarr", **TABLE)
    convert(folder / "t.zarr", folder / "u.zarr")
    left = {
        "build": filled(mount, folder / "t.zarr", lambda out: build(out, **TABLE)),
        "convert": filled(mount, folder / "u.zarr", lambda out: convert(folder / "t.zarr", out)),
    }
    print(json.dumps(left))


def convert(source: Path, out: Path) -> Any:
    return convert_table(
        ConvertRequest(source=source, dtype="float16", out=out, chunk_rows=53, threads=1)
    )


def filled(mount: Path, whole: Path, make: Callable[[Path], Any]) -> dict[str, Any]:
    """Make a table where half of it fits, then with more room."""
    out = mount / whole.name
    size = sum(file.stat().st_size for file in whole.rglob("*") if file.is_file())
    resize(mount, f"{size // 2 // 1024}k")
    try:
        make(out)
    except OutputError as error:
        said = str(error)
    parts = [str(path) for path in mount.rglob("*.part")]
    opened = out.exists()
    resize(mount, "64m")
    made = make(out)
    resumed = made.resumed if hasattr(made, "resumed") else made.resumed_chunks
    equal = open_table(out).digest == open_table(whole).digest
    shutil.rmtree(out)
    return {"said": said, "parts": parts, "opened": opened, "resumed": resumed, "equal": equal}


def resize(mount: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(mount)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
