"""Ctrl-C at any moment, and as often as one likes: one line, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Sends SIGINT to itself when a module is asked for, so that the moment is always the same one.
_SCRIPT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        for _ in range({times!r}.get(name, 0)):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from engram_cli.__main__ import main
sys.argv = ["engram", "compress-vocab", "nowhere.json"]
main()
"""


@pytest.mark.parametrize(
    "times",
    [
        {"typer": 1},  # before the command line is there
        {"typer": 2},
        {"engram_cli.commands.compress_vocab": 1},  # in a command
        {"engram_cli.commands.compress_vocab": 2},
        {"engram_cli.commands.compress_vocab": 1, "rich.text": 1},  # and while it says so
        {"engram_cli.commands.compress_vocab": 1, "rich.console": 2},
    ],
)
def test_an_interrupt_is_one_line(times: dict[str, int], tmp_path: Path) -> None:
    code = _SCRIPT.format(times=times)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == "error: interrupted - run the same command again\n"
    assert done.returncode == 130
    assert done.stdout == ""


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    """As nohup wants it."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + _SCRIPT.format(
        times={"typer": 1}
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("error: tokenizer not found")


def test_numba_told_not_to_compile_is_one_line(tmp_path: Path) -> None:
    code = "from engram_cli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "build-table", "--scheme", "qwen-ple", "--dry-run"],
        cwd=tmp_path,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: NUMBA_DISABLE_JIT is set, and kernels must be compiled - unset it"
    )
    assert "Traceback" not in done.stderr
