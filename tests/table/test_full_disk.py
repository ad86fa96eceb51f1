"""The disk is full, and it is the system that says so: nothing is lost, the build goes on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from table.tables import build

from engram_cli.table.store import open_table

HERE = Path(__file__).parent
MOUNT = "mount -t tmpfs -o size=1m none"


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    own = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*own, f"{MOUNT} {mount}"], capture_output=True).returncode
    ):
        pytest.skip("this system lets nobody mount")
    script = f"{MOUNT} {mount} && exec {sys.executable} {HERE / 'full_disk.py'} {mount} {tmp_path}"
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    done = subprocess.run(
        [*own, script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout).items():
        assert "No space left on device" in found["said"], name
        assert "resumes from there" in found["said"], name
        assert (found["parts"], found["opened"], found["equal"]) == ([], False, True), name
        assert found["resumed"] > 0, name


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """A limit that any system has: one line says so, and later the command ends what it began."""
    build(tmp_path / "t.zarr", dim=64)
    command = [sys.executable, "-m", "engram_cli", "convert", "t.zarr", "--dtype", "float16"]
    command += ["--out", "u.zarr"]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    small = (8192, 8192)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, small),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert not (tmp_path / "u.zarr").exists()
    assert not list(tmp_path.rglob("*.part"))
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment)
    assert open_table(tmp_path / "u.zarr").dtype == "float16"
