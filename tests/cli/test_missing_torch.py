"""Commands that run a model, where torch or transformers is not installed: one clear line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# A module that is None in sys.modules cannot be imported or found.
PROGRAM = (
    "import sys; name = sys.argv.pop(1); sys.modules[name] = None\n"
    "from engram_cli.__main__ import main; main()"
)


TRAIN = ["train", "ckpt", "a.txt", "--held-out", "b.txt"]
FIT = ["attach", "ckpt", "--table", "table.zarr", "--fit", "b.txt"]


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("torch", TRAIN),
        ("torch", [*TRAIN, "--dry-run"]),
        ("transformers", TRAIN),
        ("accelerate", TRAIN),
        ("torch", FIT),
        ("transformers", FIT),
        ("torch", ["evaluate", "ckpt", "b.txt"]),
    ],
)
def test_a_missing_package_is_named(package: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, package, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert "pip install" in done.stderr
    if arguments[0] == "train":
        assert done.stderr.startswith(f"error: engram train needs {package} - ")
