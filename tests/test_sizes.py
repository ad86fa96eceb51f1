"""How much memory is free, as the system and the control group say."""

from __future__ import annotations

from pathlib import Path

import pytest

from engram_cli import sizes
from engram_cli.sizes import available_memory


def test_available_memory_is_the_least_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(sizes, "_CGROUP", tmp_path)
    assert available_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:  2000 kB\n")
    assert available_memory() == 2000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert available_memory() == 700_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 2000 * 1024
