"""EngramDB's Store-I: read with its bundle, and compared with EngramDB in both directions."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints
from formats.small_artifacts import store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_cli import hash_tokens
from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.lookup.command import lookup
from engram_cli.commands.requests.reading import LookupRequest
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.formats.engramdb import FORMAT, Store
from engram_cli.formats.shard_shape import ShardShape
from engram_cli.rows import DTYPES

SCALE = np.array([0.25], dtype=np.float32)


def opened(path: Path) -> Store:
    found = find_artifact(path)
    assert found.kind == "engramdb"
    source = found.open()
    assert isinstance(source, Store)
    return source


def results(source: Store, result: str) -> dict[str, tuple[str, str]]:
    return {c.name: (c.found, c.expected) for c in source.checks if c.result == result}


@pytest.mark.parametrize("place", [".", "rows"])
def test_a_store(tmp_path: Path, place: str) -> None:
    written = store(tmp_path / "m", place=place)
    source = opened(written.path)
    assert source.layout.fingerprint == written.layout.fingerprint
    assert not results(source, "differs")
    # The bundle's vocabulary is not the release's, which is what a bundle without one has.
    assert set(results(source, "undecided")) == {"token ids"}  # no tokenizer was given
    values = np.empty(written.rows.shape, dtype=np.float32)
    DTYPES.load("fp8").decode(written.rows, SCALE, values)
    ids = np.random.default_rng(0).integers(0, len(values), 60)
    assert np.array_equal(source.vectors(2, ids), values[ids])
    assert verify(VerifyRequest(path=written.path, folder=tmp_path)).ok


def test_the_release(tmp_path: Path) -> None:
    """All constants left out: those of Qwen's release, 128 shards of 2,500,012 rows of holes."""
    small = {"multipliers": None, "prime_sizes": None, "offsets": None, "vocab_size": None}
    written = store(tmp_path / "m", ple=small | {"eos": 248044, "ple_embed_dim": 2560})
    described = written.bundle
    described["memory"]["store"] |= {"shards": 128, "rows_per_shard": 2_500_012, "width": 160}
    (written.path / "bundle.json").write_text(json.dumps(described))
    row = np.arange(160, dtype=np.uint8) & 0x7E
    for index in range(128):
        with (written.path / f"shard_{index:03d}.bin").open("wb") as file:
            file.truncate(2_500_012 * 160)
            if index == 127:
                file.seek(-160, 2)
                file.write(row.tobytes())
    source = opened(written.path)
    assert not results(source, "differs")
    assert set(results(source, "undecided")) == {
        *("keys of ple", "token ids", "multipliers", "rows of each head", "offsets")
    }
    assert source.layout.layers[0].multipliers[0] == 23703573157769
    found = source.vectors(2, [0, 320_001_535])
    assert not found[0].any()
    assert found[1].any()


def test_they_read_what_we_read(tmp_path: Path) -> None:
    """EngramDB fetches the same bytes, and hashes tokens to the same rows."""
    bundles = pytest.importorskip("engramdb.bundle")
    written = store(tmp_path / "m")
    source = opened(written.path)
    described = bundles.BundleManifest.load(written.path / "bundle.json")
    assert described.validate() == []
    memory = described.open_memory()
    tokens = [3, 7, 299, 5, 5, 7, 7, 250, 1]
    rows = np.array(memory.rowids_for_tokens(tokens))
    assert np.array_equal(hash_tokens(source.layout, tokens, layer=2), rows)
    raw = memory.fetch_raw(rows.tolist())
    stored, scale = source.stored(2, rows.reshape(-1))
    assert stored.tobytes() == raw
    assert np.array_equal(scale, SCALE)


def test_we_read_what_they_write(tmp_path: Path) -> None:
    """A bundle that EngramDB saved, over shards that it opens."""
    engramdb = pytest.importorskip("engramdb")
    bundles = pytest.importorskip("engramdb.bundle")
    written = store(tmp_path / "m")
    (written.path / "bundle.json").unlink()
    manifest = bundles.BundleManifest(written.bundle, base_dir=written.path)
    manifest.save(written.path / "bundle.json")
    own = engramdb.Store(str(written.path), 4, len(written.rows) // 4, 16)
    assert not results(opened(written.path), "differs")
    assert own.total_rows == opened(written.path).layout.layers[0].rows


def test_shards_that_are_missing_short_or_left_over(tmp_path: Path) -> None:
    written = store(tmp_path / "m")
    last = written.path / "shard_003.bin"
    last.write_bytes(last.read_bytes()[:-16])
    (written.path / "shard_004.bin").write_bytes(b"")
    source = opened(written.path)
    assert source.layers == ()
    differs = results(source, "differs")
    assert "shard_003.bin has" in differs["sizes of the shards"][0]
    assert differs["shards that the bundle does not name"] == ("1", "0")
    last.unlink()
    assert "shard_003.bin" in results(opened(written.path), "differs")["shards"][0]


def test_without_a_bundle(tmp_path: Path) -> None:
    written = store(tmp_path / "m")
    (written.path / "bundle.json").unlink()
    with pytest.raises(InputError, match="how many rows of which width"):
        opened(written.path)


@pytest.mark.parametrize("place", ["/etc", "../m", "a/../../b", 5])
def test_a_store_elsewhere(tmp_path: Path, place: Any) -> None:
    written = store(tmp_path / "m")
    written.bundle["memory"]["store"]["path"] = place
    (written.path / "bundle.json").write_text(json.dumps(written.bundle))
    with pytest.raises(InputError, match="outside its folder"):
        opened(written.path)


@pytest.mark.parametrize(
    ("ple", "check"),
    [
        ({"multipliers": [1, 3, 5]}, "multipliers"),
        ({"head_dim": 15}, "values a row"),
        ({"prime_sizes": [97] * 16, "offsets": None}, "rows of each head"),
    ],
)
def test_a_bundle_that_does_not_fit(tmp_path: Path, ple: dict[str, Any], check: str) -> None:
    assert check in results(opened(store(tmp_path / "m", ple=ple).path), "differs")


@pytest.mark.parametrize(
    "ple",
    [{"offsets": [0] * 16}, {"scale": -1}, {"scale": "x"}, {"eos": 2**70}, {"prime_sizes": [0]},
     {"dtype": []}, {"multipliers": [2**62, 1, 1]}, {"ngram_size": 10**9}, {"num_heads": "?"},
     {"heads_per_ngram": -1}],
)  # fmt: skip
def test_values_that_cannot_be(tmp_path: Path, ple: dict[str, Any]) -> None:
    written = store(tmp_path / "m", ple={"head_dim": None} | ple)
    with pytest.raises((ArtifactError, InputError)):
        opened(written.path)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_our_own_errors(tmp_path: Path, data: st.DataObject) -> None:
    path = store(tmp_path / "m").path
    raw = bytearray((path / "bundle.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(32, 126))
    (path / "bundle.json").write_bytes(raw)
    with contextlib.suppress(EngramError):
        source = FORMAT.open(path, None)
        for layer in source.layers:
            source.vectors(layer, [0, 1])


def test_shards_that_nothing_describes(tmp_path: Path) -> None:
    """Their shape is given; whose rows they are is told by their number alone."""
    written = store(tmp_path / "m")
    (written.path / "bundle.json").unlink()
    with pytest.raises(InputError, match=r"no bundle\.json") as error:
        opened(written.path)
    assert error.value.hint == "give --shards, --rows-per-shard and --width"
    shape = ShardShape(shards=4, rows_per_shard=544, width=16)
    source = find_artifact(written.path, shape).open()
    assert isinstance(source, Store)
    assert not results(source, "differs")
    assert "another hash" in results(source, "undecided")["rows"][0]
    assert np.array_equal(source.lines(0, "rows", 0, 2176), written.rows)
    checked = verify(VerifyRequest(path=written.path, shape=shape, folder=tmp_path))
    assert checked.ok
    assert {check.name for check in checked.checks} >= {"layer 0: values", "repeated rows"}
    with pytest.raises(InputError, match="whose hash is not known"):
        lookup(LookupRequest(path=written.path, shape=shape, ids=(5, 9), folder=tmp_path))
    other = ShardShape(shards=5, rows_per_shard=544, width=16)
    checked = verify(VerifyRequest(path=written.path, shape=other, folder=tmp_path))
    assert any("shard_004.bin" in problem for problem in checked.problems)


def test_the_release_without_a_bundle(tmp_path: Path) -> None:
    """As many rows as Qwen's release: its hash, and its first and last row."""
    (tmp_path / "m").mkdir()
    for index in range(128):
        with (tmp_path / "m" / f"shard_{index:03d}.bin").open("wb") as file:
            file.truncate(2_500_012 * 160)
    shape = ShardShape(shards=128, rows_per_shard=2_500_012, width=160)
    request = LookupRequest(path=tmp_path / "m", shape=shape, ids=(5, 9), folder=tmp_path)
    assert lookup(request).scheme == "qwen-ple"


def test_a_shape_of_files_that_describe_themselves(tmp_path: Path) -> None:
    shape = ShardShape(shards=4, rows_per_shard=544, width=16)
    written = store(tmp_path / "m")
    with pytest.raises(InputError, match=r"has a bundle\.json, which describes its shards"):
        find_artifact(written.path, shape).open()
    made = checkpoints.qwen_ple(tmp_path / "q")
    with pytest.raises(InputError, match="describes itself"):
        find_artifact(made.path, shape).open()
