"""What a writer that was killed leaves behind: finished, put back or removed, never another's."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_files import LETTERS, contents, write, write_letters

from engram_cli import temporary
from engram_cli.outputs import new_folder, prepare_output
from engram_cli.temporary import FORMAT, MARK

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_files import LETTER, LETTERS, write_letters
from engram_cli import files, outputs
from engram_cli.outputs import new_file, new_folder
path = Path({path!r})
{patch}
with new_folder(path, LETTERS, force=True) as part:
    write_letters(part, "new")
    {then}
"""


DIE = "os.kill(os.getpid(), signal.SIGKILL)"


def killed(path: Path, then: str = DIE, patch: str = "") -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path), patch=patch, then=then)
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "result"
    killed(path)
    (left,) = tmp_path.iterdir()
    assert (left / "content" / "new").exists()
    # It is that of another output.
    with new_folder(tmp_path / "results", LETTERS) as part:
        write_letters(part, "other")
    assert left.exists()
    prepare_output(path, LETTERS, force=False)
    assert not left.exists()


@pytest.mark.parametrize("when", ["exchanged", "while the old one goes"])
def test_a_replacement_that_was_killed_is_finished(when: str, tmp_path: Path) -> None:
    path = tmp_path / "result"
    with new_folder(path, LETTERS) as part:
        write_letters(part, "one")
    name = "outputs.exchange" if when == "exchanged" else "shutil.rmtree"
    patch = f"import shutil\nreal = {name}\ndef die(*a): real(*a); {DIE}\n{name} = die"
    killed(path, then="pass", patch=patch)
    assert (path / "new").exists()
    assert len(list(tmp_path.iterdir())) == 2
    prepare_output(path, LETTERS, force=True)
    assert [each.name for each in tmp_path.iterdir()] == ["result"]


def test_without_exchanging_the_old_one_gets_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result"
    with new_folder(path, LETTERS) as part:
        write_letters(part, "one")
    patch = (
        "files._libc = lambda *_: None\n"
        f"real = files.rename_new\ndef die(*a):\n    if path.exists(): real(*a)\n    else: {DIE}\n"
        "outputs.rename_new = die"
    )
    killed(path, then="pass", patch=patch)
    assert not path.exists()
    prepare_output(path, LETTERS, force=True)
    assert contents(tmp_path).keys() == {"result", "result/one", "result/letters.txt"}


def test_a_live_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with new_folder(path, LETTERS) as part:
        write_letters(part, "slow")
        # Another container may have the same host name, and its processes the same numbers.
        mark = part.parent / MARK
        mark.write_text(mark.read_text().replace(f'"pid": {os.getpid()}', '"pid": 999999999'))
        write(path, lambda _: None)
        assert (part / "slow").exists()
        path.rename(tmp_path / "moved")
    assert (path / "slow").exists()


@pytest.mark.parametrize(
    "name",
    [
        ".engram-0123456789abcdef0123456789abcdef.part",
        ".result.host-1.abc.part",
        ".result.abc.old",
        "result.replaced",
        "result.partial",
        ".result.resume",
        ".result.scratch",
    ],
)
@pytest.mark.parametrize("what", ["notes", "mark of another", "broken mark", "link", "file"])
def test_what_only_has_such_a_name_is_kept(name: str, what: str, tmp_path: Path) -> None:
    mine, path = tmp_path / name, tmp_path / "result"
    if what == "file":
        mine.write_text("mine")
    elif what == "link":
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "notes.txt").write_text("mine")
        mine.symlink_to("target")
    else:
        (mine / "content").mkdir(parents=True)
        (mine / "content" / "notes.txt").write_text("mine")
    if what == "mark of another":
        (mine / MARK).write_text(json.dumps({"format": "theirs", "of": "result"}))
    elif what == "broken mark":
        (mine / MARK).write_text("{")
    before = contents(tmp_path)
    with new_folder(path, LETTERS) as part:
        write_letters(part, "new")
    assert {name: value for name, value in contents(tmp_path).items() if name in before} == before


def test_displaced_files_that_are_not_ours_are_kept(tmp_path: Path) -> None:
    """A kill between the exchange and the look at what was exchanged."""
    path = tmp_path / "result"
    with new_folder(path, LETTERS) as part:
        write_letters(part, "one")
    add = "(path / 'thesis.tex').write_text('years of work')"
    patch = f"real = files.exchange\ndef die(*a): real(*a); {DIE}\noutputs.exchange = die"
    killed(path, then=add, patch=patch)
    prepare_output(path, LETTERS, force=True)
    (kept,) = tmp_path.glob(".engram-*/content/thesis.tex")
    assert kept.read_text() == "years of work"


def no_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("change", ["nothing", "boot", "namespace", "pid", "host"])
def test_without_locks_only_a_process_known_to_be_gone_is_gone(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result"
    killed(path)
    (left,) = tmp_path.iterdir()
    said = json.loads((left / MARK).read_text())
    assert said["format"] == FORMAT
    if change in ("boot", "namespace"):
        said[change] = "another"
    elif change == "pid":  # a live process, which started when the mark says
        said |= {"pid": os.getpid(), "started": temporary._started(os.getpid())}
    elif change == "host":
        said["host"] = "elsewhere"
    (left / MARK).write_text(json.dumps(said))
    monkeypatch.setattr(temporary.fcntl, "flock", no_locks)
    prepare_output(path, LETTERS, force=False)
    assert left.exists() == (change in ("boot", "namespace", "pid"))


@pytest.mark.parametrize(
    ("host", "boot", "gone"),
    [(None, None, True), ("x", None, True), (None, "x", True), ("x", "x", False)],
)
def test_a_free_lock_proves_nothing_about_another_machine(
    host: str | None, boot: str | None, gone: bool, tmp_path: Path
) -> None:
    path = tmp_path / "result"
    killed(path)
    (left,) = tmp_path.iterdir()
    said = json.loads((left / MARK).read_text())
    said["host"] = host or socket.gethostname()
    said["boot"] = boot or said["boot"]
    (left / MARK).write_text(json.dumps(said))
    prepare_output(path, LETTERS, force=False)
    assert left.exists() != gone
