"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from engram_cli.errors import OutputError
from engram_cli.files import new_file, new_folder, refuse_existing


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with new_file(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with suppress(ValueError), new_file(path, force=True) as part:
        part.write_text("half")
        raise ValueError
    assert path.read_text() == "whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result"]


def test_a_folder_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with new_folder(path) as part:
        (part / "one").write_text("1")
    with new_folder(path, force=True) as part:
        (part / "two").write_text("2")
        assert (path / "one").exists()
    assert [entry.name for entry in path.iterdir()] == ["two"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["result"]
    with pytest.raises(OutputError, match="already exists"), new_folder(path):
        raise AssertionError("not reached")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_force_replaces_what_is_ours_or_empty(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "result"
    content = path if kind == "file" else path / "letter"
    if kind == "folder":
        path.mkdir()
    else:
        path.touch()
    with pytest.raises(OutputError, match="already exists"):
        refuse_existing(path, False, lambda _: True, "letter")
    refuse_existing(path, True, lambda _: False, "letter")
    content.write_text("mine")
    refuse_existing(path, True, lambda _: True, "letter")
    with pytest.raises(OutputError, match=r"is no letter.*write elsewhere with --to"):
        refuse_existing(path, True, lambda _: False, "letter", option="--to")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    dead = int(done.stdout)
    host = platform.node()
    stale = tmp_path / f".result.{host}-{dead}.abc.part"
    stale.mkdir()
    (stale / "rows").write_bytes(b"x" * 100)
    mine = tmp_path / f".result.{host}-{os.getpid()}.abc.part"
    elsewhere = tmp_path / f".result.other{host}-{dead}.abc.part"
    other = tmp_path / f".results.{host}-{dead}.abc.part"
    for kept in (mine, elsewhere, other):
        kept.write_text("not to be touched")
    with new_folder(tmp_path / "result") as part:
        (part / "rows").write_text("new")
    assert not stale.exists()
    assert mine.exists()
    assert elsewhere.exists()
    assert other.exists()


def test_compiled_kernels_lie_outside_the_package(tmp_path: Path) -> None:
    code = "import engram_cli.hashing.kernels as k; print(k.compress._cache.cache_path)"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith(str(tmp_path / "engram-tables" / "numba"))
