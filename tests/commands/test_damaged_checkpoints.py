"""Checkpoints that are damaged or cannot be written are told and dropped; the count goes on."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands.broken_off import GOING_ON, Heard, broken_off, contents, run, size_of

from engram_cli.stats.counting import checkpoint


@pytest.fixture
def here(batches: Path) -> Path:
    return batches


def cut_arrays(folder: Path) -> None:
    (path,) = folder.glob("arrays-*.bin")
    path.write_bytes(path.read_bytes()[:-16])


def flip_arrays(folder: Path) -> None:
    (path,) = folder.glob("arrays-*.bin")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def no_arrays(folder: Path) -> None:
    for path in folder.glob("arrays-*.bin"):
        path.unlink()


def document(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / checkpoint.DOCUMENT
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def no_json(folder: Path) -> None:
    (folder / checkpoint.DOCUMENT).write_text("{")


def entry(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        listed = json.loads((folder / checkpoint.DOCUMENT).read_text())["arrays"]
        document(arrays=[listed[0] | changes, *listed[1:]])(folder)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(cut_arrays, flip_arrays, no_arrays, no_json),
        *(document(version=2), document(mark=None), document(mark={"file": -1}), document(size="")),
        *(document(arrays=[]), document(arrays=[None]), document(arrays_file="../corpus/00.txt")),
        *(document(encoder="eval"), document(tokens=True), document(digest=None)),
        *(entry(dtype="|O8"), entry(shape=[2**62, 2**62]), entry(offset=-16), entry(offset=8)),
        *(entry(name=5), entry(shape=[-1]), entry(shape="1"), entry(more=1), entry(shape=[2])),
    ],
)
def test_a_damaged_one_is_told_once_and_dropped(damage: Callable[[Path], None], here: Path) -> None:
    whole = run(here, out=here / "whole")
    broken_off(here)
    damage(here / ".engram-stats.resume")
    again = Heard()
    result = run(here, again)
    assert again.said("counting from the start, the checkpoint ")
    assert not again.said(GOING_ON)
    assert contents(result.out) == contents(whole.out)
    assert result.resumed_tokens == 0


def test_a_full_disk_ends_the_checkpoints_not_the_count(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(here, out=here / "whole")
    write, calls = checkpoint._write_arrays, []

    def full(path: Path, state: Any) -> str:
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"the beginning")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, state)

    monkeypatch.setattr(checkpoint, "_write_arrays", full)
    heard = Heard(stop_after=size_of(here) * 3 // 4)
    with pytest.raises(KeyboardInterrupt):
        run(here, heard)
    assert len(calls) == 3
    assert heard.said("no checkpoints from here on: cannot write ")
    folder = here / ".engram-stats.resume"
    assert sorted(path.suffix for path in folder.iterdir()) == [".bin", ".json", ".json"]  # a mark
    again = Heard()
    result = run(here, again)  # from the second one
    assert again.said(GOING_ON)
    assert contents(result.out) == contents(whole.out)
