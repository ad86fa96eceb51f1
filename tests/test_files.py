"""Files and folders that appear whole or not at all, and replace only what is ours."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engram_cli import files
from engram_cli.errors import OutputError
from engram_cli.outputs import Kind, Listing, check_output, new_file, new_folder


def _letters(path: Path) -> Listing | None:
    try:
        listed = (path / "letters.txt").read_text().split()
    except OSError:
        return None
    return Listing(frozenset((*listed, "letters.txt")))


def _letter(path: Path) -> Listing | None:
    return Listing() if path.read_bytes().startswith(b"Dear") else None


LETTER = Kind(name="letter", listing=_letter, folder=False)
LETTERS = Kind(name="folder of letters", listing=_letters)


def write_letters(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"Dear {name}")
    (folder / "letters.txt").write_text(" ".join(names))


def contents(folder: Path) -> dict[str, Any]:
    """Everything below a folder: bytes of files, targets of links, None for folders."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture(params=["renameat2", "without"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Systems with renameat2 and without it."""
    if request.param == "without":
        monkeypatch.setattr(files, "_libc", lambda *_: None)
    return str(request.param)


def test_a_file_appears_when_it_is_whole(tmp_path: Path, system: str) -> None:
    path = tmp_path / "result"
    with new_file(path, LETTER) as part:
        part.write_text("Dear whole")
        assert not path.exists()
    assert path.read_text() == "Dear whole"
    with suppress(ValueError), new_file(path, LETTER, force=True) as part:
        part.write_text("Dear half")
        raise ValueError
    assert path.read_text() == "Dear whole"
    with new_file(path, LETTER, force=True) as part:
        part.write_text("Dear new")
    assert contents(tmp_path) == {"result": b"Dear new"}
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_a_folder_is_replaced_at_once(tmp_path: Path, system: str) -> None:
    path = tmp_path / "result"
    with new_folder(path, LETTERS) as part:
        write_letters(part, "one", "in/two")
    with new_folder(path, LETTERS, force=True) as part:
        write_letters(part, "three")
        assert (path / "one").exists()
    assert contents(tmp_path).keys() == {"result", "result/three", "result/letters.txt"}
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask()
    with pytest.raises(OutputError, match="already exists"), new_folder(path, LETTERS):
        raise AssertionError("not reached")


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


FOREIGN: dict[str, Callable[[Path], object]] = {
    "thesis.tex": lambda path: path.write_text("years of work"),
    "in/thesis.tex": lambda path: path.write_text("years of work"),
    ".git/": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("letters.txt"),
    "one": lambda path: (path.unlink(), path.symlink_to("letters.txt")),
    "pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_force_names_what_is_not_ours_and_keeps_all(name: str, tmp_path: Path) -> None:
    path = tmp_path / "result"
    with new_folder(path, LETTERS) as part:
        write_letters(part, "one", "in/two")
    FOREIGN[name](path / name)
    before = contents(tmp_path) if name != "pipe" else {}
    with (
        pytest.raises(OutputError, match=f"holds {name}, which engram did not write there, so"),
        new_folder(path, LETTERS, force=True),
    ):
        raise AssertionError("not reached")
    assert name == "pipe" or contents(tmp_path) == before


def test_a_message_names_three_foreign_files(tmp_path: Path) -> None:
    write_letters(tmp_path, "one")
    for name in "abcd":
        (tmp_path / name).write_text("mine")
    assert LETTERS.problem(tmp_path) == ("holds a, b, c and more, which engram did not write there")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_force_replaces_what_is_ours_or_empty(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "result"
    wanted = LETTER if kind == "file" else LETTERS
    content = path if kind == "file" else path / "letter"
    if kind == "folder":
        path.mkdir()
    else:
        path.touch()
    with pytest.raises(OutputError, match="already exists"):
        check_output(path, wanted, force=False)
    check_output(path, wanted, force=True)
    content.write_text("mine")
    with pytest.raises(OutputError, match=r"is no .*write elsewhere with --to"):
        check_output(path, wanted, force=True, option="--to")
    if kind == "file":
        path.write_text("Dear")
        check_output(path, wanted, force=True)
    else:
        (path / "letters.txt").write_text("letter")
        check_output(path, wanted, force=True)
    other = LETTERS if kind == "file" else LETTER
    with pytest.raises(OutputError, match="is no"):
        check_output(path, other, force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("target", ["folder", "file", "nothing"])
def test_a_link_is_refused_before_any_work(target: str, force: bool, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    path = tmp_path / "link"
    path.symlink_to(target)
    for kind in (LETTER, LETTERS):
        with pytest.raises(OutputError, match="link is a symbolic link"):
            check_output(path, kind, force=force)
    assert path.is_symlink()


@pytest.mark.parametrize("path", [".", "..", "/", "in/.."])
def test_a_place_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(OutputError, match="names no new file or folder"):
        check_output(Path(path), LETTERS, force=True)


def test_a_mounted_disk_is_refused() -> None:
    with pytest.raises(OutputError, match="/proc is where a disk is mounted"):
        check_output(Path("/proc"), LETTERS, force=True)


def test_inputs_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with new_folder(path, LETTERS) as part:
        write_letters(part, "one", "in/two")
    (tmp_path / "other").symlink_to(path)
    (tmp_path / "elsewhere").mkdir()
    for given in ("result", "result/one", "result/in/two", "other/in", "elsewhere/../result/one"):
        source = tmp_path / given
        with pytest.raises(OutputError, match="this command reads"):
            check_output(path, LETTERS, force=True, inputs=(None, source))
    check_output(path, LETTERS, force=True, inputs=(tmp_path, tmp_path / "no/such", None, "-"))
    assert (path / "in" / "two").exists()


@pytest.mark.parametrize("there", ["foreign", "ours", "empty", "link", "file"])
def test_what_appears_meanwhile_is_kept_without_force(
    there: str, tmp_path: Path, system: str
) -> None:
    path = tmp_path / "result"
    appear(there, tmp_path / "before" / "result")
    with pytest.raises(OutputError, match="appeared while it was being written"):
        write(path, lambda _: appear(there, path))
    assert not list(tmp_path.glob(".engram-*"))
    shown = {name: value for name, value in contents(tmp_path).items() if "before" not in name}
    assert shown == contents(tmp_path / "before")


def write(path: Path, meanwhile: Callable[[Path], object], *, force: bool = False) -> None:
    """Write letters, and let something happen while they are in their temporary folder."""
    with new_folder(path, LETTERS, force=force) as part:
        write_letters(part, "new", "other")
        meanwhile(part)


def appear(there: str, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if there in ("foreign", "ours", "empty"):
        path.mkdir()
    if there == "foreign":
        (path / "thesis.tex").write_text("years of work")
    elif there == "ours":
        write_letters(path, "one")
    elif there == "link":
        path.with_name("target").mkdir()
        path.symlink_to("target")
    elif there == "file":
        path.write_text("years of work")


@pytest.mark.parametrize("there", ["foreign", "file", "link"])
def test_what_appears_meanwhile_is_kept_with_force(there: str, tmp_path: Path, system: str) -> None:
    path = tmp_path / "result"
    with new_folder(path, LETTERS) as part:
        write_letters(part, "one")

    def exchanged(_: Path) -> None:
        path.rename(tmp_path / "moved")
        appear(there, path)

    with pytest.raises(OutputError, match=r"was changed while .* is kept"):
        write(path, exchanged, force=True)
    appear(there, tmp_path / "before" / "result")
    shown = {name: value for name, value in contents(tmp_path).items() if "/" not in name}
    left = {"moved", "before", "result", *({"target"} if there == "link" else ())}
    assert shown.keys() == left
    for name in left & {"result", "target"}:
        assert shown[name] == contents(tmp_path / "before")[name]
    assert there != "foreign" or (path / "thesis.tex").read_text() == "years of work"


def test_a_file_added_meanwhile_is_kept_with_force(tmp_path: Path, system: str) -> None:
    path = tmp_path / "result"
    with new_folder(path, LETTERS) as part:
        write_letters(part, "one")
    with pytest.raises(OutputError, match=r"holds thesis\.tex, which engram did not write"):
        write(path, lambda _: (path / "thesis.tex").write_text("years of work"), force=True)
    assert contents(path) == {
        "letters.txt": b"one",
        "one": b"Dear one",
        "thesis.tex": b"years of work",
    }
    assert not list(tmp_path.glob(".engram-*"))


def test_what_vanishes_while_it_is_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it lacks other"):
        write(tmp_path / "result", lambda part: (part / "other").unlink())
    assert contents(tmp_path) == {}


def test_a_refused_exchange_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without it, where the call gives EINVAL."""
    monkeypatch.setattr(files, "_UNSUPPORTED", frozenset((errno.EEXIST, errno.EINVAL)))
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    assert not files._renameat2(one, one / "no", 8)
    files.rename_new(one, two)
    one.write_text("new")
    with pytest.raises(FileExistsError):
        files.rename_new(one, two)
    assert (one.read_text(), two.read_text()) == ("new", "1")
    assert files.exchange(one, two)
    assert (one.read_text(), two.read_text()) == ("1", "new")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no sync_file_range")
def test_the_disk_begins_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(bytes(range(256)) * 64)
        assert files.start_writing(file.fileno(), 4096, 8192)
        assert not files.start_writing(-1, 0, 1)
        monkeypatch.setattr(files, "_libc", lambda *_: None)
        assert not files.start_writing(file.fileno(), 0, 4096)
    assert path.read_bytes() == bytes(range(256)) * 64


def test_compiled_kernels_lie_outside_the_package(tmp_path: Path) -> None:
    code = "import engram_cli.hashing.kernels as k; print(k.compress.stats.cache_path)"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith(str(tmp_path / "engram-tables" / "numba"))
