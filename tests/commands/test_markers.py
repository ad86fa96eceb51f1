"""Marker files do not make a folder one of engram's: all that it holds is looked at."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands.jobs import JOBS
from test_files import contents

from engram_cli.commands.demo import command as demo
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import OutputError
from engram_cli.formats.bundle import BUNDLE
from engram_cli.outputs import Kind
from engram_cli.stats.stats_io import STATISTICS_FOLDER
from engram_cli.table.places import TABLE

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
def test_a_damaged_marker_raises_nothing(
    kind: Kind, marker: str, value: Any, jobs_base: Path
) -> None:
    """Each value of the document in turn is another one; a foreign file is never ours."""
    folder = jobs_base / marker.partition("/")[0]
    raw = (jobs_base / marker).read_bytes()
    (folder / "thesis.tex").write_text("years of work")
    try:
        for damaged in changed(json.loads(raw), value, 3):
            (jobs_base / marker).write_text(json.dumps(damaged))
            assert kind.problem(folder) is not None
    finally:
        (jobs_base / marker).write_bytes(raw)
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
