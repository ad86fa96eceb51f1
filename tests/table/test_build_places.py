"""Builds: what stands at their place, and who else builds there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from table.building import fail_after, names_in
from table.tables import build

from engram_cli import files
from engram_cli.errors import OutputError
from engram_cli.table import build as build_module
from engram_cli.table.lock import build_lock, lock_path
from engram_cli.table.places import partial_folder
from engram_cli.table.store import open_table


@pytest.mark.parametrize("system", ["renameat2", "without"])
@pytest.mark.parametrize("force", [False, True])
def test_what_appears_while_a_table_is_built_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, system: str
) -> None:
    """The finished table waits in its partial folder, and the same command puts it in place."""
    if system == "without":
        monkeypatch.setattr(files, "_libc", lambda *_: None)
    out = tmp_path / "t.zarr"
    if force:
        build(out, seed=1)
    fill_rows = build_module.fill_rows

    def filled(*arguments: Any, **options: Any) -> None:
        fill_rows(*arguments, **options)
        out.mkdir(exist_ok=True)
        (out / "thesis.tex").write_text("years of work")

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "fill_rows", filled)
        with pytest.raises(OutputError, match=r"appeared while|was changed while"):
            build(out, force=force)
    assert (out / "thesis.tex").read_text() == "years of work"
    assert names_in(tmp_path) == ["t.zarr", "t.zarr.partial"]
    (out / "thesis.tex").unlink()
    if not force:
        out.rmdir()
    report = build(out, force=force)
    assert report.resumed == report.chunks
    assert report.digest == build(tmp_path / "u.zarr").digest
    assert names_in(tmp_path) == ["t.zarr", "u.zarr"]


@pytest.mark.parametrize("name", ["thesis.tex", ".git/HEAD", "0/notes.txt", "build.jsonl"])
def test_a_foreign_folder_in_the_way_is_left_alone(tmp_path: Path, name: str) -> None:
    out = tmp_path / "t.zarr"
    mine = partial_folder(out) / name
    mine.parent.mkdir(parents=True)
    mine.write_text("[]\nyears of work")
    for force in (False, True):
        with pytest.raises(OutputError, match="in the way: it is no half-built table"):
            build(out, force=force)
    assert mine.read_text() == "[]\nyears of work"
    assert names_in(tmp_path) == ["t.zarr.partial"]


@pytest.mark.parametrize("options", [{}, {"force": True, "dim": 7}])
def test_a_half_built_table_with_a_foreign_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    out = tmp_path / "t.zarr"
    with monkeypatch.context() as patch:
        fail_after(patch, 5, errno.EIO)
        with pytest.raises(OutputError):
            build(out)
    mine = partial_folder(out) / "0" / "notes.txt"
    mine.write_text("mine")
    with pytest.raises(OutputError, match=r"it holds 0/notes\.txt, which engram did not write"):
        build(out, **options)
    assert mine.read_text() == "mine"
    mine.unlink()
    assert build(out).resumed == 5


def test_a_journal_without_a_request_asks_for_force(tmp_path: Path) -> None:
    partial = partial_folder(tmp_path / "t.zarr")
    partial.mkdir()
    (partial / "build.jsonl").write_text('{"format": "engram-table-build"}\n')
    with pytest.raises(OutputError) as caught:
        build(tmp_path / "t.zarr")
    assert "--force" in caught.value.hint
    assert build(tmp_path / "t.zarr", force=True).resumed == 0


def test_an_existing_table_is_replaced_only_with_force_and_only_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.zarr"
    old = build(out).digest
    with pytest.raises(OutputError, match="already exists") as caught:
        build(out, seed=1)
    assert "--force" in caught.value.hint
    with monkeypatch.context() as patch:
        fail_after(patch, 5, errno.ENOSPC)
        with pytest.raises(OutputError):
            build(out, seed=1, force=True)
    assert open_table(out).digest == old
    report = build(out, seed=1, force=True)
    assert report.resumed == 5
    assert open_table(out).digest == report.digest != old
    assert names_in(tmp_path) == ["t.zarr"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_force_removes_no_stranger(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "data"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="is no table"):
        build(out, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_force_replaces_an_empty_folder(tmp_path: Path) -> None:
    out = tmp_path / "t.zarr"
    out.mkdir()
    with pytest.raises(OutputError, match="already exists"):
        build(out)
    report = build(out, force=True)
    assert open_table(out).digest == report.digest
    assert names_in(tmp_path) == ["t.zarr"]


@pytest.mark.parametrize("place", ["/proc/t.zarr", "file/t.zarr"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a file, no folder")
    with pytest.raises(OutputError, match="cannot write"):
        build(tmp_path / place)


def test_two_builders_do_not_meet(tmp_path: Path) -> None:
    out = tmp_path / "t.zarr"
    with build_lock(out), pytest.raises(OutputError, match=f"by process {os.getpid()} on"):
        build(out)
    assert not lock_path(out).exists()
    build(out)


def test_a_lock_whose_process_is_gone_is_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "t.zarr"
    for left in (json.dumps({"pid": 999999, "host": os.uname().nodename}), ""):
        lock_path(out).write_text(left)
        build(out, force=True)
    assert names_in(tmp_path) == ["t.zarr"]


def test_the_lock_of_another_host_holds(tmp_path: Path) -> None:
    out = tmp_path / "t.zarr"
    lock_path(out).write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(OutputError, match="process 7 on elsewhere") as caught:
        build(out)
    assert str(lock_path(out)) in caught.value.hint
    assert lock_path(out).exists()


def test_a_lock_removed_under_our_hands_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.zarr"
    lock = fcntl.flock
    calls: list[int] = []

    def late(handle: int, how: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            lock_path(out).unlink()  # the owner ended between our open and our lock
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with build_lock(out):
        assert len(calls) == 2
        assert json.loads(lock_path(out).read_text())["pid"] == os.getpid()
