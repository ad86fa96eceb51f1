"""doctor as users type it: exit codes, 80 columns, JSON, and a machine without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli.conftest import Engram
from cli.test_missing_torch import PROGRAM

from engram_cli.commands.doctor import command
from engram_cli.commands.doctor.gpus import Gpu, GpuLink, Gpus, Torch

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


@pytest.mark.parametrize("broken", [False, True])
def test_without_torch(broken: bool, tmp_path: Path) -> None:
    """It is not installed, or a library that it needs is missing."""
    program, path = PROGRAM, os.environ.get("PYTHONPATH", "")
    if broken:
        (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open')\n")
        program = "import sys; del sys.argv[1]\nfrom engram_cli.__main__ import main; main()"
        path = f"{tmp_path}{os.pathsep}{path}"
    done = subprocess.run(
        [sys.executable, "-c", program, "torch", "doctor", "--no-disk"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == broken, done.stderr
    assert done.stderr == ""
    if broken:
        assert "error: torch cannot be imported (OSError: libcudart.so: cannot open)" in done.stdout
    else:
        assert "not known: torch is not installed" in done.stdout
