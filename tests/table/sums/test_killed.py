"""SIGKILL in the middle of any write of an update: the same update completes the table."""

from __future__ import annotations

from pathlib import Path

from scripts import run_script


def test_killed_anywhere_an_update_is_completed_by_the_same_one(tmp_path: Path) -> None:
    """A few of the cases that the script does when it is run by hand."""
    found = run_script("table/killed_updates.py", tmp_path, 2)
    assert set(found["states"]) <= {"old", "new", "half-updated"}
    assert {"new", "half-updated"} <= set(found["states"])
    assert found["killed"] >= 2
