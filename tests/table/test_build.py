"""Builds: the same bytes however they are made, and nothing lost when they are interrupted."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table.tables import build, mapped_layout, stored_rows, table_spec

from engram_cli import files
from engram_cli.errors import EngramError, IncompleteError, OutputError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.table import build as build_module
from engram_cli.table import fill
from engram_cli.table.build import resumable_bytes
from engram_cli.table.inits.normal import Normal
from engram_cli.table.lock import build_lock, lock_path
from engram_cli.table.places import partial_folder
from engram_cli.table.store import open_table


class Interrupting:
    """A listener that presses Ctrl-C, or only counts."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.total = 0
        self.done = 0

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.total = total or 0

    def advance(self, amount: int) -> None:
        self.done += amount
        if self.after is not None and self.done >= self.after:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        raise AssertionError(text)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_after(monkeypatch: pytest.MonkeyPatch, chunks: int, code: int) -> None:
    """Let `chunks` chunks be written, then answer every write with the error `code`."""
    written = iter(range(chunks))
    write = fill._write_all

    def refuse(handle: int, data: np.ndarray) -> None:
        if next(written, None) is None:
            raise OSError(code, os.strerror(code))
        write(handle, data)

    monkeypatch.setattr(fill, "_write_all", refuse)


@pytest.mark.parametrize("init", ["normal", "zeros"])
@given(chunk_rows=st.integers(1, 300), threads=st.integers(1, 4), piece=st.integers(1, 4000))
@settings(max_examples=12, deadline=None)
def test_chunks_and_threads_change_no_byte_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, init: str, chunk_rows: int, threads: int, piece: int
) -> None:
    folder = tmp_path_factory.mktemp("t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "PIECE_BYTES", piece)
        options = {"dtype": "bfloat16", "init": init, "chunk_rows": chunk_rows}
        build(folder / "cut.zarr", threads=threads, **options)
    cut = open_table(folder / "cut.zarr")
    assert verify_table(cut.path).ok
    for layer in (0, 3):
        expected = np.zeros((212, 5), np.float32)
        if init == "normal":
            Normal().filler(layer, 5)(0, expected)
        stored = np.zeros((212, 5), np.uint16)
        table_spec(dtype="bfloat16").row_type.encode(expected, stored, None)
        assert stored_rows(cut, layer) == stored.tobytes()


def test_chunks_are_made_even_and_small_tables_are_one() -> None:
    small = table_spec(chunk_rows=None).row_arrays[3]
    assert (small.chunks, small.chunk_rows) == (1, 212)
    from engram_cli.hashing.schemes import hash_layout

    layout = hash_layout("qwen-ple")
    for array in table_spec(layout, dim=160, dtype="bfloat16", chunk_rows=None).arrays:
        assert 64 * 2**20 <= array.chunk_bytes <= 256 * 2**20
        assert 0 <= array.chunks * array.chunk_rows - array.rows < array.chunks


def test_the_disk_begins_with_a_chunk_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: dict[int, int] = {}

    def begin(handle: int, first: int, size: int) -> bool:
        about = os.fstat(handle)
        assert first == reached.get(about.st_ino, 0), "ranges follow each other"
        reached[about.st_ino] = first + size
        return first + size <= about.st_size

    monkeypatch.setattr(fill, "start_writing", begin)
    monkeypatch.setattr(fill, "START_BYTES", 100)
    monkeypatch.setattr(fill, "PIECE_BYTES", 200)
    build(tmp_path / "t.zarr", threads=2, dtype="bfloat16", chunk_rows=50)
    assert verify_table(tmp_path / "t.zarr").ok
    chunks = {chunk.stat().st_ino for chunk in tmp_path.glob("t.zarr/[03]/c.*")}
    assert set(reached) == chunks


def test_zeros_take_no_room(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr", init="zeros", dim=4096, chunk_rows=None)
    chunk = (tmp_path / "t.zarr" / "3" / "c.0.0").stat()
    assert chunk.st_size == 212 * 4096 * 4
    assert chunk.st_blocks * 512 < chunk.st_size // 10


def test_progress_reaches_the_total_and_nothing_is_left_over(tmp_path: Path) -> None:
    progress = Interrupting()
    build(tmp_path / "t.zarr", progress=progress, threads=2)
    assert progress.done == progress.total == 2 * 7 * 32 * 5 * 4
    assert names_in(tmp_path) == ["t.zarr"]
    assert names_in(tmp_path / "t.zarr") == ["0", "3", "lookup", "zarr.json"]


def test_ctrl_c_keeps_what_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "t.zarr"
    expected = build(tmp_path / "u.zarr").digest
    with pytest.raises(KeyboardInterrupt):
        build(out, progress=Interrupting(after=1))
    assert names_in(tmp_path) == ["t.zarr.partial", "u.zarr"]
    with pytest.raises(IncompleteError):
        open_table(out)
    report = build(out)
    assert report.digest == expected
    assert verify_table(out).ok


def test_a_full_disk_is_one_line_and_the_build_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.zarr"
    with monkeypatch.context() as patch:
        fail_after(patch, 5, errno.ENOSPC)
        with pytest.raises(OutputError, match="No space left") as caught:
            build(out, tokens=3)
    assert "resumes from there" in caught.value.hint
    # What could not be written is gone, so that it takes no space.
    assert not list(tmp_path.rglob("*.part"))
    spec = table_spec(tokens=3)
    assert resumable_bytes(spec, out) == 5 * 640
    assert resumable_bytes(table_spec(seed=1), out) == 0
    progress = Interrupting()
    report = build(out, tokens=3, progress=progress)
    assert report.resumed == 5
    assert progress.done == progress.total
    assert report.digest == build(tmp_path / "u.zarr", tokens=3).digest


def test_a_half_built_table_of_another_request_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.zarr"
    with monkeypatch.context() as patch:
        fail_after(patch, 5, errno.EIO)
        with pytest.raises(OutputError, match="Input/output error"):
            build(out)
    for options, what in {
        "dim": ({"dim": 6}, r"dim 5 \(now 6\)"),
        "dtype": ({"dtype": "float16"}, r"dtype float32 \(now float16\)"),
        "std": ({"std": 0.5}, r"init std 0.02 \(now 0.5\)"),
        "seed": ({"seed": 3}, r"init seed 0 \(now 3\)"),
        "init": ({"init": "zeros"}, "init normal"),
        "chunks": ({"chunk_rows": 33}, "rows a chunk, layer 0 32"),
    }.values():
        with pytest.raises(OutputError, match=what) as caught:
            build(out, **options)
        assert "--force" in caught.value.hint
    assert resumable_bytes(table_spec(), out) == 5 * 640
    # Hits are written at the end, so they are no part of the request.
    assert build(out, tokens=4).resumed == 5
    with monkeypatch.context() as patch:
        fail_after(patch, 2, errno.EIO)
        with pytest.raises(OutputError):
            build(out, force=True, dim=7)
    assert build(out, force=True, dim=6).resumed == 0
    assert open_table(out).dim == 6


@pytest.mark.parametrize("lines", ["torn", "garbage", "other sizes", "foreign", "nested", "texts"])
def test_a_damaged_journal_costs_only_its_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    out = tmp_path / "t.zarr"
    with monkeypatch.context() as patch:
        fail_after(patch, 5, errno.EIO)
        with pytest.raises(OutputError):
            build(out)
    journal = partial_folder(out) / "build.jsonl"
    if lines == "torn":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif lines == "garbage":
        whole = journal.read_text().splitlines()
        journal.write_text("\n".join([*whole[:-1], "{]", '{"file": 3}', ""]))
    else:
        *whole, last = journal.read_text().splitlines()
        entry = json.loads(last)
        changed = partial_folder(out) / entry["file"]
        if lines == "other sizes":
            changed.write_bytes(b"")
        elif lines == "foreign":  # what is there, and is not a chunk of its size
            changed.write_bytes(b"12345")
            foreign = {"file": "0/c.99.0", "size": 5, "checksum": "0"}
            (partial_folder(out) / "0/c.99.0").write_bytes(b"12345")
            lines_left = [*whole, json.dumps(entry | {"size": 5}), json.dumps(foreign)]
            journal.write_text("\n".join([*lines_left, ""]))
        elif lines == "nested":
            journal.write_text("\n".join([*whole, "[" * 10**5, '{"file": [[]]}', ""]))
        else:
            names = ("\ud800", "a\0b", "../../x", "/etc/passwd")
            bad = [json.dumps(entry | {"file": name}) for name in names]
            journal.write_text("\n".join([*whole, *bad, ""]))
    assert build(out).resumed == 4
    assert verify_table(out).ok


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


@pytest.mark.parametrize("how", ["removed", "cut", "a link"])
def test_a_chunk_that_goes_during_a_build_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    out, chunk = tmp_path / "t.zarr", tmp_path / "t.zarr.partial" / "3" / "c.1.0"
    fill_rows = build_module.fill_rows

    def filled(*arguments: Any, **options: Any) -> None:
        fill_rows(*arguments, **options)
        if how == "cut":
            os.truncate(chunk, 5)
            return
        chunk.rename(tmp_path / "moved")
        if how == "a link":
            chunk.symlink_to(tmp_path / "moved")

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "fill_rows", filled)
        with pytest.raises(OutputError, match=r"3/c\.1\.0 was (removed|changed) while the table"):
            build(out)
    assert not out.exists()
    if how == "a link":
        chunk.unlink()
    report = build(out)
    assert report.resumed == report.chunks - 1
    assert report.digest == build(tmp_path / "u.zarr").digest
    assert verify_table(out).ok


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


def test_a_table_that_does_not_fit_is_refused_with_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    need = table_spec().total_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, need - 1))
    with pytest.raises(OutputError, match=r"424 rows x 20 bytes.*0\.000 GB are free"):
        build(tmp_path / "deep" / "t.zarr")
    assert names_in(tmp_path / "deep") == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, need))
    build(tmp_path / "deep" / "t.zarr")


def test_what_is_done_counts_when_space_is_reckoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.zarr"
    with monkeypatch.context() as patch:
        fail_after(patch, 5, errno.EIO)
        with pytest.raises(OutputError):
            build(out)
    usage = namedtuple("usage", "total used free")
    rest = table_spec().total_bytes - 5 * 640
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, rest - 1))
    with pytest.raises(OutputError, match="of it done"):
        build(out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, rest))
    assert build(out).resumed == 5


@pytest.mark.parametrize("place", ["/proc/t.zarr", "file/t.zarr"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a file, no folder")
    with pytest.raises(OutputError, match="cannot write"):
        build(tmp_path / place)


def test_a_read_only_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="Read-only file system") as caught:
        build(tmp_path / "t.zarr")
    assert caught.value.hint == "the file system is read-only: write to another place"


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


def test_errors_of_an_init_are_not_dressed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(first: int, out: np.ndarray) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Normal, "filler", lambda self, layer, dim: broken)
    with pytest.raises(ZeroDivisionError):
        build(tmp_path / "t.zarr")


def test_the_digest_of_a_small_table_does_not_move(tmp_path: Path) -> None:
    """Same request, same bytes, on every machine and in every version of format 1."""
    report = build(tmp_path / "t.zarr", dtype="bfloat16")
    assert report.digest == DIGEST
    assert mapped_layout().fingerprint == open_table(tmp_path / "t.zarr").layout.fingerprint


DIGEST = "sha256:ed32bcbac4b97325d410be71d50169b317721a665d7ed7f8b03ef59ce443b428"


def test_our_errors_have_hints(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(EngramError) as caught:
        build(tmp_path, force=True)
    assert caught.value.hint
