"""A little of the mutation run, which `python tests/fuzz/run.py` does by the hundred thousand."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from fuzz.mutate import mutate, mutate_bytes

HERE = Path(__file__).parent
CASES = 900


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "run.py"), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_damage_raises_nothing_but_our_errors() -> None:
    """Other cases than those that were fixed, the same ones each time."""
    done = run("--count", CASES, "--seed", "ci")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert f"{CASES} mutations, 0 findings of 0 kinds" in done.stdout


def test_what_is_wrong_is_found() -> None:
    """A reader that raises, one that hangs, one that takes memory, one that dies."""
    done = run("--count", 5, "--self-test")
    assert done.returncode == 1, done.stderr
    for what in ("KeyError: 'x'", "takes more than", "MB", "ends the process with -9"):
        assert what in done.stdout, done.stdout
    assert "5 mutations, 4 findings of 4 kinds" in done.stdout


def test_the_same_case_is_the_same_damage() -> None:
    raw = b'{"a": [1, 2, {"b": "c"}], "d": 5}' * 3
    one, two = ([mutate_bytes(raw, random.Random(seed)) for seed in range(50)] for _ in range(2))
    assert one == two
    assert len(set(one)) > 40
    document = b'{"a": [1, 2, {"b": "c"}], "d": 5}'
    assert len({mutate("x.json", document, random.Random(seed)) for seed in range(200)}) > 100
