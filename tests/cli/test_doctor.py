"""doctor as users type it: exit codes, 80 columns, JSON, and a machine without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from cli.conftest import Engram
from cli.test_missing_torch import PROGRAM

from engram_cli.commands import doctor as command
from engram_cli.commands.doctor import Torch
from engram_cli.commands.gpus import Gpu, GpuLink, Gpus

PAIR = Gpus(
    found=True,
    driver="580.1",
    gpus=tuple(
        Gpu(index=index, name="NVIDIA H200", total_bytes=150 * 10**9, free_bytes=140 * 10**9)
        for index in (0, 1)
    ),
    links=(GpuLink(first=0, second=1, link="SYS", peer_access=False),),
)


@pytest.fixture(autouse=True)
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "read_gpus", lambda: PAIR)
    monkeypatch.setattr(command, "read_torch", lambda: Torch(cuda="13.0", gpus=2))
    monkeypatch.setattr("shutil.which", lambda name: None)


def test_it_warns_and_ends_well(engram: Engram) -> None:
    done = engram("doctor", "--no-disk")
    assert done.code == 0
    assert "NVIDIA H200" in done.out
    assert "driver 580.1; torch: CUDA 13.0, 2 GPUs" in done.out
    assert "warning: GPUs 0-1 cannot read each other's memory" in done.out
    assert re.search(r"hbm +GPU 0 +140\sG", done.out)
    assert "no known problems" not in done.out


def test_what_prevents_use_is_an_error(engram: Engram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "read_torch", lambda: Torch(problem="OSError: no libcuda"))
    done = engram("doctor", "--no-disk")
    assert done.code == 1
    assert "error: torch cannot be imported (OSError: no libcuda)" in done.out


def test_json_has_units_in_its_names(engram: Engram) -> None:
    found = json.loads(engram("doctor", "--no-disk", "--json").out)
    assert found["ok"] is True
    assert found["gpus"]["gpus"][0]["free_bytes"] == 140 * 10**9
    assert found["memory"]["total_bytes"] > 10**9
    assert found["disks"][0]["reads_per_second"] is None
    assert {each["name"] for each in found["packages"]} >= {"numpy", "torch", "zarr"}
    assert found["placements"][0]["placement"] == "hbm"
    assert found["findings"][0]["prevents_use"] is False


def test_a_path_with_a_typo(engram: Engram) -> None:
    done = engram("doctor", "tabel.zarr")
    assert done.code == 2
    assert done.error_line == "error: tabel.zarr does not exist - check the path"


def test_torch_that_cannot_be_imported() -> None:
    """It is installed, and a part of it is missing."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "torch", "doctor", "--no-disk"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "error: torch cannot be imported (ModuleNotFoundError" in done.stdout
    assert "Traceback" not in done.stderr


def test_without_torch(engram: Engram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "read_torch", lambda: None)
    done = engram("doctor", "--no-disk")
    assert done.code == 0
    assert "not known: torch is not installed" in done.out
