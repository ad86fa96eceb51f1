"""SIGKILL at every step of a build: it never opens half-built, and the same command finishes it."""

from __future__ import annotations

from pathlib import Path

from scripts import run_script


def test_killed_anywhere_a_build_is_finished_by_the_same_command(tmp_path: Path) -> None:
    found = run_script("table/killed.py", tmp_path)
    # Reached: nothing yet, half-built, whole; and the old one while it is being replaced.
    assert set(found["states"]) <= {"InputError", "IncompleteError", "whole", "old"}
    assert {"IncompleteError", "whole", "old"} <= set(found["states"])
    assert found["killed"] > 50


def test_killed_at_random_moments_builds_and_conversions_end_in_the_same_bytes(
    tmp_path: Path,
) -> None:
    """A few of the kills that the script does when it is run by hand."""
    found = run_script("table/killed_at_random.py", tmp_path, 2)
    assert len(found) == 4
    for each in found.values():
        assert each["kills"] == 2
        assert set(each["states"]) <= {"InputError", "IncompleteError", "whole"}


def test_killed_anywhere_a_table_is_filled_from_its_corpus_by_the_same_command(
    tmp_path: Path,
) -> None:
    found = run_script("table/killed_filling.py", tmp_path)
    assert set(found["states"]) <= {"InputError", "IncompleteError", "whole"}
    assert {"InputError", "IncompleteError", "whole"} <= set(found["states"])
    assert found["killed"] > 20
