"""attach of a counted table: the bundle keeps the hits, copied or referred to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attaching import Listener, request
from commands.made import Made
from formats.bundles import put
from tiny_models import llama

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.attach.command import attach_checkpoint
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.errors import ArtifactError
from engram_cli.files import canonical_json
from engram_cli.formats.bundle import read_bundle
from engram_cli.runtime import attach, load, save_engram
from engram_cli.table.store import open_table


@pytest.mark.parametrize("reference", [False, True])
def test_the_hits_are_the_tables(made_once: Made, tmp_path: Path, reference: bool) -> None:
    listener = Listener()
    options = {"out": tmp_path / "engram", "reference": reference}
    result = attach_checkpoint(
        request(made_once.bundle.parent, made_once.table, **options), listener
    )
    table, bundle = open_table(made_once.table), read_bundle(result.out)
    rows = sum(result.rows.values())
    assert result.cost.hits_bytes == 4 * rows
    assert f"{4 * rows:,} bytes of hits" in listener.notes[0]
    if not reference:
        assert listener.done == listener.total == result.cost.table_bytes + 4 * rows
    assert any(name.startswith("hits-") for name in result.files) != reference
    assert bundle.has_hits
    at = np.array([5, 0, 299, 5])
    found = find_artifact(result.out).open().hits_at
    assert found is not None
    for layer in bundle.spec.layers:
        assert np.array_equal(bundle.hits(layer), table.hits(layer))
        assert np.array_equal(found(layer, at), table.hits_at(layer, at))
    assert verify(VerifyRequest(path=result.out, threads=1)).problems == ()


def test_the_room_for_them_is_counted(made_once: Made) -> None:
    options = {"dry_run": True, "out": made_once.folder / "nowhere"}
    copy, refers = (
        attach_checkpoint(
            request(made_once.bundle.parent, made_once.table, reference=reference, **options)
        ).cost
        for reference in (False, True)
    )
    assert copy.disk_bytes - refers.disk_bytes == copy.table_bytes + copy.hits_bytes


def test_inspect_shows_them_without_statistics(made_once: Made, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(made_once.bundle, tmp_path / "alone" / "engram"))
    found, table = (inspect(InspectRequest(path=p, threads=1)) for p in (alone, made_once.table))
    assert found.stats is None
    assert ("row hits", "kept for every row") in found.facts
    assert [column.hits for column in found.columns] == [column.hits for column in table.columns]
    assert any(column.hits for column in found.columns)


def test_saving_and_loading_keep_them(made_once: Made, tmp_path: Path) -> None:
    model = llama(500)
    memory = attach(model, made_once.bundle)
    saved = read_bundle(save_engram(model, tmp_path / "saved"), verify=True)
    first = read_bundle(made_once.bundle)
    for layer in first.spec.layers:
        assert np.array_equal(saved.hits(layer), first.hits(layer))
    memory.hits = {}
    bare = save_engram(model, tmp_path / "bare")
    assert not read_bundle(bare).has_hits
    load(model, tmp_path / "saved")
    assert read_bundle(save_engram(model, tmp_path / "again")).has_hits
    load(model, bare)
    assert not memory.hits


@pytest.mark.parametrize(
    "change",
    [
        put("table", "hits", []),
        put("table", "hits", 3),
        put("table", "hits", "hits/1/c.0", None),
        put("table", "hits", "hits/1/c.0", [3, "0"]),
        put("table", "hits", "hits/1/c.0", [10**30, "0"]),
        put("table", "hits", "hits/3/c.0", [4, "0"]),
        put("table", "hits", "1/c.0.0", [4, "0"]),
        put("table", "hits", "hits/../1/c.0", [4, "0"]),
        put("table", "files", "hits/1/c.0", [4, "0"]),
        lambda document: document["table"]["hits"].pop("hits/1/c.0"),
    ],
)
def test_a_reference_to_hits_that_cannot_be(made_once: Made, tmp_path: Path, change: Any) -> None:
    options = {"out": tmp_path / "engram", "reference": True}
    out = attach_checkpoint(request(made_once.bundle.parent, made_once.table, **options)).out
    document = json.loads((out / "engram.json").read_bytes())
    change(document)
    (out / "engram.json").write_bytes(canonical_json(document))
    with pytest.raises(ArtifactError, match="is not a bundle"):
        read_bundle(out)
