"""Builds: the same bytes however they are made, and nothing lost when they are interrupted."""

from __future__ import annotations

import errno
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
from table.building import Interrupting, fail_after, names_in
from table.tables import build, mapped_layout, stored_rows, table_spec

from engram_cli.errors import EngramError, IncompleteError, OutputError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.table import build as build_module
from engram_cli.table import fill
from engram_cli.table.build import resumable_bytes
from engram_cli.table.inits.normal import Normal
from engram_cli.table.places import partial_folder
from engram_cli.table.store import open_table


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


def test_a_read_only_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="Read-only file system") as caught:
        build(tmp_path / "t.zarr")
    assert caught.value.hint == "the file system is read-only: write to another place"


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
