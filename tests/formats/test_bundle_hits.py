"""Hits in a bundle: what was counted comes back, and bundles without them are what they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from formats.bundles import hits_in_chunks, hits_of, make_spec, write

from engram_cli.errors import ArtifactError
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Checks
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_spec import HITS
from engram_cli.vocab.compress import CompressedVocab


@pytest.mark.parametrize("shard_rows", [50, 10_000])
def test_hits_are_read_back(tmp_path: Path, small_vocab: CompressedVocab, shard_rows: int) -> None:
    spec = make_spec(small_vocab)
    options = {"shard_bytes": 4096 + 4 * shard_rows, "hits": hits_in_chunks(spec, 37)}
    write(spec, tmp_path / "engram", **options)
    bundle = read_bundle(tmp_path / "engram", verify=True)
    assert bundle.has_hits
    for layer in spec.layers:
        assert (len(bundle.maps(layer, HITS)) > 1) == (shard_rows == 50)
        assert bundle.hits(layer).dtype == np.uint32
        assert np.array_equal(bundle.hits(layer), hits_of(spec, layer))


def test_a_bundle_with_hits_is_one_without_them_and_more(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    spec = make_spec(small_vocab)
    write(spec, tmp_path / "bare")
    write(spec, tmp_path / "counted", hits=hits_in_chunks(spec, 37))
    bare, counted = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("bare", "counted")
    )
    hits = {name for name in counted if name.startswith("hits-")}
    assert len(hits) == len(spec.layers)
    assert {name for name in bare if bare[name] != counted[name]} == {"engram.json"}
    assert set(counted) - set(bare) == hits
    assert not read_bundle(tmp_path / "bare").has_hits
    without = json.loads(counted["engram.json"])
    for layer in without["layers"]:
        del layer["hits"]
    for name in hits:
        del without["files"][name]
    assert without == json.loads(bare["engram.json"]), "readers that know no hits see the same"
    assert read_bundle(tmp_path / "counted").spec == read_bundle(tmp_path / "bare").spec


def test_a_changed_hit_is_found(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    spec = make_spec(small_vocab)
    write(spec, tmp_path / "engram", hits=hits_in_chunks(spec, 1000))
    path = tmp_path / "engram" / "hits-00001-of-00002.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    read_bundle(tmp_path / "engram")
    with pytest.raises(ArtifactError, match="digests differ"):
        read_bundle(tmp_path / "engram", verify=True)
    checks = Checks()
    assert FORMATS.load("bundle").verify(tmp_path / "engram", checks) is None
    assert len(checks.problems) == 1


@pytest.mark.parametrize("what", ["too few", "another dtype"])
def test_hits_that_are_not_the_layouts_leave_nothing(
    tmp_path: Path, small_vocab: CompressedVocab, what: str
) -> None:
    spec = make_spec(small_vocab)
    wrong = {
        "too few": lambda layer: [(0, hits_of(spec, layer)[:-1])],
        "another dtype": lambda layer: [(0, hits_of(spec, layer).astype(np.int64))],
    }
    with pytest.raises(ArtifactError, match="hits"):
        write(spec, tmp_path / "engram", hits=wrong[what])
    assert not (tmp_path / "engram").exists()
