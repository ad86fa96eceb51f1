"""SIGKILL at every step of apply and undo: no half-patched artifact loads, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import run_script


@pytest.mark.parametrize("kind", ["table", "bundle"])
def test_killed_anywhere(kind: str, tmp_path: Path) -> None:
    """At some steps of them all, which the script goes through when it is run by hand."""
    found = run_script("patching/killed.py", tmp_path, kind, 47)
    assert set(found) <= {"old", "new", "half-patched"}
    assert found["half-patched"]
