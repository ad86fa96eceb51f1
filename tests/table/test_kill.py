"""SIGKILL at every step of a build: it never opens half-built, and the same command finishes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import table.killed
import table.killed_at_random
import table.killed_filling


def test_killed_anywhere_a_build_is_finished_by_the_same_command(tmp_path: Path) -> None:
    script = Path(table.killed.__file__)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        env=environment(script),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Reached: nothing yet, half-built, whole; and the old one while it is being replaced.
    assert set(found["states"]) <= {"InputError", "IncompleteError", "whole", "old"}
    assert {"IncompleteError", "whole", "old"} <= set(found["states"])
    assert found["killed"] > 50


def test_killed_at_random_moments_builds_and_conversions_end_in_the_same_bytes(
    tmp_path: Path,
) -> None:
    """A few of the kills that the script does when it is run by hand."""
    script = Path(table.killed_at_random.__file__)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path), "2"],
        env=environment(script),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4
    for each in found.values():
        assert each["kills"] == 2
        assert set(each["states"]) <= {"InputError", "IncompleteError", "whole"}


def test_killed_anywhere_a_table_is_filled_from_its_corpus_by_the_same_command(
    tmp_path: Path,
) -> None:
    script = Path(table.killed_filling.__file__)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parents[1]), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["states"]) <= {"InputError", "IncompleteError", "whole"}
    assert {"InputError", "IncompleteError", "whole"} <= set(found["states"])
    assert found["killed"] > 20


def environment(script: Path) -> dict[str, str]:
    """Ours, with the tests importable as well."""
    paths = [str(script.parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
