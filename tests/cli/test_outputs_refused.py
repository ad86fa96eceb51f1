"""Outputs that are inputs, foreign, or not permitted are refused before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli.conftest import Engram
from patching.patched import artifact, contents, opened, patch_of

from engram_cli.errors import OutputError
from engram_cli.files import output_errors
from engram_cli.patches.patch_file import write_patch
from engram_cli.table.lock import build_lock

PATCH = "one.patch.safetensors"


@pytest.fixture
def patched(engram: Engram) -> Engram:
    """A folder with a table, a patch of it, and a folder of somebody's."""
    base = opened(artifact(engram.folder / "t.zarr", "table", "float32"))
    write_patch(engram.folder / PATCH, patch_of(base))
    (engram.folder / "corpus").mkdir()
    (engram.folder / "corpus" / "a.txt").write_text("mine")
    return engram


@pytest.mark.parametrize("command", ["apply", "stack"])
@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("t.zarr", "t.zarr is what this command reads"),
        (PATCH, f"{PATCH} is what this command reads"),
        ("corpus", "corpus is no"),
    ],
)
def test_inputs_and_foreign_folders_are_kept(
    patched: Engram, monkeypatch: pytest.MonkeyPatch, command: str, out: str, said: str
) -> None:
    before = contents(patched.folder)
    monkeypatch.setattr("engram_cli.commands.patch.command.open_patch", None)  # nothing was read
    done = patched("patch", command, "t.zarr", PATCH, "--out", out, "--force")
    assert done.code == 2
    assert said in done.error_line
    assert contents(patched.folder) == before


@pytest.mark.parametrize(
    ("command", "option", "out"),
    [
        (("diff", "t.zarr", PATCH), "--report", "ro/d.html"),
        (("diff", "t.zarr", PATCH), "--patch", "ro/d.patch.safetensors"),
        (("patch", "apply", "t.zarr", PATCH), "--out", "ro/x.zarr"),
        (("update", "t.zarr", "--add", "corpus"), "--out", "ro/x.zarr"),
    ],
)
def test_a_folder_without_permission_names_the_output_and_its_option(
    patched: Engram,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    option: str,
    out: str,
) -> None:
    Path("ro").mkdir()
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != "ro" and allowed(path, mode)
    )
    done = patched(*command, option, out)
    assert done.code == 2
    assert f"cannot write {out}: no permission to write in ro" in done.error_line
    assert f"write elsewhere with {option}" in done.err
    assert not list(Path("ro").iterdir())


def test_a_lock_that_cannot_be_written_names_the_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught, build_lock(tmp_path / "file" / "x", Path("x.zarr")):
        pass
    assert caught.value.message.startswith("cannot write x.zarr: ")


def test_no_hint_of_the_system_names_an_option(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, output_errors(tmp_path / "d.html"):
        raise PermissionError(13, "Permission denied")
    assert caught.value.hint == "no permission: write to another place"
