"""Unfinished work, locks and half-built tables: commands touch only what engram wrote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands.broken_off import Heard
from commands.jobs import JOBS
from test_files import contents

from engram_cli.commands.demo import command as demo
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import OutputError
from engram_cli.table.lock import lock_path
from engram_cli.table.places import partial_folder, scratch_folder

NAMES = {
    "build-table": ["t.zarr.replaced", "t.zarr.partial.replaced", ".t.zarr.scratch"],
    "build-table --init token-mean": ["t.zarr.replaced"],
    "hash-stats": [".engram-stats.resume", ".engram-stats.old", ".engram-stats.0.part"],
    "attach": ["ckpt/.engram.old", "ckpt/.engram.x.old", "ckpt/.engram.x.part"],
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_folders_that_only_have_such_names_are_kept(name: str, force: bool, here: Path) -> None:
    job = JOBS[name]
    if force:
        job.before(here, False)
    mine = [here / each for each in NAMES[name]]
    for place in mine:
        (place / ".git").mkdir(parents=True)
        (place / ".git" / "HEAD").write_text("ref")
        for other in ("engram-table.zarr", "tokens.json", "checkpoint.json", "arrays-0.bin"):
            (place / other).write_text("mine")
    before = [contents(place) for place in mine]
    job.run(here, force)
    assert [contents(place) for place in mine] == before


@pytest.mark.parametrize("place", [partial_folder, scratch_folder])
@pytest.mark.parametrize("inside", [".git/HEAD", "tokens.json", "thesis.tex", None])
def test_a_folder_that_is_in_the_way_is_refused(
    place: Callable[[Path], Path], inside: str | None, here: Path
) -> None:
    folder = place(here / "t.zarr")
    folder.mkdir()
    if inside is not None:
        (folder / inside).parent.mkdir(exist_ok=True)
        (folder / inside).write_text("mine")
    before = contents(here)
    for force in (False, True):
        with pytest.raises(OutputError, match="is in the way"):
            JOBS["build-table --init token-mean"].run(here, force)
        assert contents(here) == before


def test_a_foreign_file_among_unfinished_work_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = HashStatsRequest(
        sources=(here / "corpus",),
        workspace=Workspace(here),
        geometry=dataclasses.replace(demo.GEOMETRY, rows_per_head=(60,)),
        checkpoint_seconds=0.0,
    )
    monkeypatch.setattr("engram_cli.corpus.stream._FIRST_BATCH", 600)
    with pytest.raises(KeyboardInterrupt):
        hash_stats(request, Heard(stop_after=900))
    notes = here / ".engram-stats.resume" / "notes.txt"
    notes.write_text("mine")
    hash_stats(request, Heard())
    assert {path.name for path in notes.parent.iterdir()} == {"notes.txt", "engram-work.json"}


@pytest.mark.parametrize("kind", ["link", "text", "JSON", "folder"])
@pytest.mark.parametrize("name", ["build-table", "build-table --init token-mean", "hash-stats"])
def test_a_lock_is_nobody_elses_file(name: str, kind: str, here: Path) -> None:
    job, out = JOBS[name], here / JOBS[name].out
    owner = {
        "build-table": out,
        "hash-stats": here / ".engram-stats.resume",
    }.get(name, scratch_folder(out))
    lock, target = lock_path(owner), here / "target"
    target.write_text("mine")
    if kind == "link":
        lock.symlink_to(target)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.write_text("mine" if kind == "text" else '{"pid": 7, "host": "x", "since": 2020}')
    before = contents(here)
    with pytest.raises(OutputError, match=r"\.lock is in the way: it is not a lock"):
        job.run(here, False)
    assert contents(here) == before


def test_a_half_built_table_at_the_place_is_kept(here: Path) -> None:
    job = JOBS["build-table"]
    job.before(here, False)
    out = here / job.out
    meta = json.loads((out / "zarr.json").read_text())
    meta["attributes"]["complete"] = False
    (out / "zarr.json").write_text(json.dumps(meta))
    before = contents(here)
    with pytest.raises(OutputError, match="is no table"):
        job.run(here, True)
    assert contents(here) == before


def test_the_free_space_of_a_refused_build_costs_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that does not fit removes its own beginning, and nothing else."""
    monkeypatch.setattr("engram_cli.table.build.free_bytes", lambda _: 0)
    before = contents(here)
    with pytest.raises(OutputError, match="are free"):
        JOBS["build-table"].run(here, False)
    assert contents(here) == before
