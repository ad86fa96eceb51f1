"""One copy for all processes: never half a copy, no leftover that the next start does not find."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engram_cli import shared_copy
from engram_cli.errors import InputError
from engram_cli.shared_copy import (
    HEADER_BYTES,
    Advance,
    Contents,
    SharedCopy,
    check_room,
    held_bytes,
    open_copy,
    remove_leftovers,
    shared_folder,
)

WANTED = Contents(about={"layer": 1}, size=10_000)
OTHER = Contents(about={"layer": 2}, size=10_000)
PROGRAM = Path(__file__).with_name("shared_copies.py")

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")


@pytest.fixture
def folder(shared_base: Path) -> Path:
    """The folder of this user's copies, which is not there yet."""
    return shared_base / f"engram-{os.geteuid()}"


def fill(memory: mmap.mmap, advance: Advance) -> None:
    """Write ones."""
    memory[HEADER_BYTES : HEADER_BYTES + WANTED.size] = b"\1" * WANTED.size
    advance(WANTED.size)


def never(memory: mmap.mmap, advance: Advance) -> None:
    """Fill what must be there already."""
    raise AssertionError


def take(contents: Contents = WANTED, filling: Any = fill) -> SharedCopy[mmap.mmap]:
    """Take a copy."""
    return open_copy(contents, filling, mmap.mmap)


def lose_lock(copy: SharedCopy[mmap.mmap]) -> None:
    """Lose the lock as a process does that is killed."""
    assert copy._handle is not None
    fcntl.flock(copy._handle, fcntl.LOCK_UN)


@pytest.mark.parametrize("case", ["fill", "use", "other"])
def test_killed_at_any_line(case: str, shared_base: Path) -> None:
    """The program checks that the next start has the whole copy, and that nothing is left."""
    run(case)


@pytest.mark.parametrize("case", ["forked", "once"])
def test_processes_that_use_one_copy(case: str, shared_base: Path) -> None:
    """A forked child does not remove its parent's; memory is counted once."""
    run(case)


@pytest.mark.parametrize("count", ["2", "3"])
@pytest.mark.parametrize("kill", ["-", "kill"])
def test_at_the_same_time(count: str, kill: str, shared_base: Path) -> None:
    """One process fills it, or another does when that one is killed; all have the whole copy."""
    run(count, kill)


def run(*case: str) -> None:
    """Run the program, which ends with an error unless all is as it should be."""
    path = os.pathsep.join([str(PROGRAM.parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *case],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


def test_the_last_one_removes_it(folder: Path) -> None:
    one, two = take(), take(filling=never)
    assert (one.filled, two.filled) == (True, False)
    assert one.path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert two.memory[HEADER_BYTES:][:2] == b"\1\1"
    one.release()
    one.release()
    assert two.path.exists()
    two.release()
    assert not folder.exists()
    assert two.memory[HEADER_BYTES:][:2] == b"\1\1"


def test_a_fill_that_fails_leaves_nothing(folder: Path) -> None:
    def fails(memory: mmap.mmap, advance: Advance) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(filling=fails)
    assert os.listdir(folder) == []
    take().release()
    assert not folder.exists()


def test_what_says_it_is_whole_and_is_too_short_is_filled_again(folder: Path) -> None:
    copy = take()
    os.truncate(copy.path, HEADER_BYTES)
    lose_lock(copy)
    again = take()
    assert again.filled
    again.release()


def test_memory_that_the_system_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, begin: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(InputError, match="No space left") as caught:
        take()
    assert "host,private" in caught.value.hint
    assert os.listdir(folder) == []


def test_too_little_room_is_refused_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_copy, "free_bytes", lambda place: 20_000)
    with pytest.raises(InputError) as caught:
        check_room([WANTED, OTHER])
    assert caught.value.message == (
        f"the rows need 32,768 bytes of {folder.parent}, 20,000 are free: 12,768 too many"
    )
    assert "--shm-size=1g" in caught.value.hint
    assert "ENGRAM_SHARED_MEMORY" in caught.value.hint
    assert not folder.exists()
    check_room([WANTED])
    copy = take()
    check_room([WANTED, OTHER])  # one of them is there
    assert held_bytes([WANTED, OTHER]) == WANTED.size
    copy.release()
    monkeypatch.setattr(shared_copy, "free_bytes", lambda place: None)
    check_room([WANTED, OTHER])


def test_leftovers_are_found_and_removed(folder: Path) -> None:
    used, left = take(), take(OTHER)
    lose_lock(left)
    found = remove_leftovers(dry_run=True)
    assert [each.path for each in found] == [left.path]
    assert found[0].size >= OTHER.size
    assert remove_leftovers(keep=[OTHER.name]) == []
    check_room([WANTED])
    assert os.listdir(folder) == [WANTED.name]
    used.release()


def test_what_engram_did_not_write_stays(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(0o700)
    notes, foreign, hard = (folder / name for name in ("notes.txt", "0" * 32 + ".rows", "x"))
    notes.write_text("mine")
    foreign.write_bytes(b"mine" * 5000)
    foreign.chmod(0o600)
    own = folder / WANTED.name
    own.write_bytes(b"mine")
    own.chmod(0o600)
    assert remove_leftovers() == []
    with pytest.raises(InputError, match="was not written by engram"):
        take()
    own.unlink()
    (tmp_path / "target").write_bytes(b"mine")
    own.symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match="cannot open"):
        take()
    own.unlink()
    hard.write_bytes(b"")
    hard.chmod(0o600)
    os.link(hard, own)
    with pytest.raises(InputError, match="no file of this user alone"):
        take()
    hard.unlink()
    own.chmod(0o644)
    with pytest.raises(InputError, match="no file of this user alone"):
        take()
    own.unlink()
    take().release()
    assert sorted(os.listdir(folder)) == sorted([foreign.name, "notes.txt"])
    assert (tmp_path / "target").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_is_not_this_users_alone(kind: str, folder: Path, tmp_path: Path) -> None:
    if kind == "open":
        folder.mkdir()
        folder.chmod(0o755)
    elif kind == "link":
        folder.symlink_to(tmp_path)
    else:
        folder.write_bytes(b"")
    with pytest.raises(InputError, match="this user alone may enter"):
        take()


def test_places_that_are_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared_copy.FOLDER, str(tmp_path / "missing"))
    with pytest.raises(InputError, match="is no folder"):
        shared_folder()
    monkeypatch.setenv(shared_copy.FOLDER, str(tmp_path))
    monkeypatch.setattr(shared_copy, "file_system", lambda place: "ext4")
    with pytest.raises(InputError, match="is on ext4"):
        shared_folder()


def test_waiting_says_how_far_the_other_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_copy, "_SAY_AFTER_SECONDS", 0.0)
    said, begun = threading.Event(), threading.Event()
    messages: list[str] = []

    def warning(text: str, *values: Any) -> None:
        messages.append(text % values)
        said.set()

    monkeypatch.setattr(shared_copy._LOG, "warning", warning)

    def slowly(memory: mmap.mmap, advance: Advance) -> None:
        advance(2_500)
        begun.set()
        assert said.wait(10)
        fill(memory, advance)

    copies: list[SharedCopy[mmap.mmap]] = []
    thread = threading.Thread(target=lambda: copies.append(take(filling=slowly)))
    thread.start()
    assert begun.wait(10)
    waited = take(filling=never)
    thread.join()
    assert messages[0] == (
        f"waiting for process {os.getpid()}, which fills the shared rows: 25 % of 10,000 bytes"
    )
    for copy in (*copies, waited):
        copy.release()


def test_a_process_between_its_locks_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes the copy while the exclusive lock becomes a shared one."""
    removed = []
    plain = fcntl.flock

    def flock(handle: int, kind: int) -> None:
        if kind == fcntl.LOCK_SH and not removed:
            removed.append(os.listdir(folder))
            (folder / WANTED.name).unlink()
        plain(handle, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    copy = take()
    assert removed == [[WANTED.name]]
    assert os.listdir(folder) == [WANTED.name]
    copy.release()
