"""How much is free, as the system and the control group say; sizes and times as text."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from engram_cli import sizes
from engram_cli.numbers import bytes_text, seconds_text
from engram_cli.sizes import available_memory, file_system, free_bytes


def test_available_memory_is_the_least_that_is_known(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    assert available_memory(tmp_path) is None
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:  2000 kB\n")
    assert available_memory(tmp_path) == 2000 * 1024
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("400000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert available_memory(tmp_path) == 700_000
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 2000 * 1024


MOUNTS = """\
21 1 0:19 / /proc rw,nosuid shared:12 - proc proc rw
30 1 {device} / /dev/shm rw,nosuid - {kind} none rw,size=24G
"""


@pytest.mark.parametrize("kind", ["tmpfs", "hugetlbfs"])
def test_the_kind_of_a_file_system(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts, number = tmp_path / "mountinfo", tmp_path.stat().st_dev
    monkeypatch.setattr(sizes, "_MOUNTS", mounts)
    assert file_system(tmp_path) is None
    mounts.write_text(MOUNTS.format(device=f"{os.major(number)}:{os.minor(number)}", kind=kind))
    assert file_system(tmp_path) == kind
    mounts.write_text("nonsense\n\n" + MOUNTS.format(device="999:999", kind=kind))
    assert file_system(tmp_path) is None


def test_free_bytes_of_a_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = os.statvfs(tmp_path)
    assert free_bytes(tmp_path) == pytest.approx(about.f_bavail * about.f_frsize, rel=0.2)
    unlimited = SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=2**21, f_bsize=2**21)
    monkeypatch.setattr(os, "statvfs", lambda place: unlimited)
    monkeypatch.setattr(sizes, "_HUGE_PAGES", tmp_path)
    assert free_bytes(tmp_path) is None
    pool = tmp_path / "hugepages-2048kB"
    pool.mkdir()
    (pool / "free_hugepages").write_text("20\n")
    (pool / "resv_hugepages").write_text("5\n")
    monkeypatch.setattr(sizes, "file_system", lambda place: "hugetlbfs")
    assert free_bytes(tmp_path) == 15 * 2**21
    monkeypatch.setattr(sizes, "file_system", lambda place: "tmpfs")
    assert free_bytes(tmp_path) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "less than 1 ms"),
        (0.0004, "less than 1 ms"),
        (0.0006, "1 ms"),
        (0.0944, "94 ms"),
        (0.0951, "0.1 s"),
        (12.34, "12.3 s"),
        (7200, "7,200.0 s"),
    ],
)
def test_times_do_not_round_to_nothing(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (45_600, "45.6 kB"), (10**6, "1.0 MB"), (2_048 * 10**9, "2.0 TB")],
)
def test_bytes_in_words(value: int, text: str) -> None:
    assert bytes_text(value) == text
