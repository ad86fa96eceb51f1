"""convert --to engramdb: a store that every reading function of EngramDB gives the same rows of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints, small_artifacts
from formats.converted import converted, stored, table

from engram_cli import hash_tokens
from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.build_table import build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.requests.tables import BuildTableRequest
from engram_cli.commands.verify.command import verify
from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.rows.source import ROWS, SCALES
from engram_cli.vocab.compress import CompressedVocab

TOKENS = [3, 7, 299, 5, 5, 7, 7, 250, 1]


def test_a_release_and_back(tmp_path: Path) -> None:
    """Qwen4-Exp fp8 -> store -> table: the rows, the scale and the hash stay."""
    made = checkpoints.qwen_ple(tmp_path / "q", dtype="float8_e4m3fn")
    result = converted(made.path, "engramdb", tmp_path / "s")
    assert result.verified
    assert result.notes == ()
    source = find_artifact(tmp_path / "s").open()
    assert np.array_equal(stored(source, 2, ROWS), made.rows[2])
    assert source.lines(2, SCALES, 0, 1)[0] == np.float32(2.0**-12 * 1.5)
    assert source.layout.fingerprint == made.layout.fingerprint
    assert verify(VerifyRequest(path=tmp_path / "s", folder=tmp_path)).ok
    table(tmp_path / "s", tmp_path / "t.zarr")
    converted(tmp_path / "t.zarr", "engramdb", tmp_path / "again")
    for name in result.files[:-1]:
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_every_reading_function_of_engramdb(tmp_path: Path) -> None:
    engramdb = pytest.importorskip("engramdb")
    torch = pytest.importorskip("torch")
    bundles = pytest.importorskip("engramdb.bundle")
    vllm = pytest.importorskip("engramdb.vllm")
    adapters = pytest.importorskip("engramdb.ple_adapter")
    made = checkpoints.qwen_ple(tmp_path / "q", dtype="float8_e4m3fn")
    converted(made.path, "engramdb", tmp_path / "s")
    source = find_artifact(tmp_path / "s").open()
    rows = hash_tokens(source.layout, TOKENS, layer=2)
    values = torch.from_numpy(source.vectors(2, rows.reshape(-1))).reshape(len(TOKENS), 16, 160)
    raw = made.rows[2][rows.reshape(-1)].tobytes()

    described = bundles.BundleManifest.load(tmp_path / "s" / "bundle.json")
    assert described.validate() == []
    memory = described.open_memory()
    assert np.array_equal(memory.rowids_for_tokens(TOKENS), rows)
    assert memory.fetch_raw(rows.tolist()) == raw
    assert torch.equal(memory.fetch_tensor(rows.tolist()), values)
    step = memory.new_sequence().feed(TOKENS[:4], as_tensor=True)
    assert step.raw == raw[: len(step.raw)]
    assert torch.equal(step.e_t, values[:4])

    about = described.memory["store"]
    places = (about["shards"], about["rows_per_shard"], about["width"])
    ids = rows.reshape(-1).tolist()
    store = engramdb.Store(str(tmp_path / "s"), *places)
    assert store.total_rows == len(made.rows[2])
    assert store.fetch(ids) == raw
    assert store.fetch_one(ids[7]) == raw[7 * 160 : 8 * 160]
    with engramdb.StorePool(str(tmp_path / "s"), *places) as pooled:
        assert pooled.fetch(ids) == raw
    assert engramdb.Database(tmp_path).fetch("s", ids, *places) == raw
    assert vllm.PleDiskGather(store, 160).fetch(ids) == raw
    scale = described.ple["scale"]
    assert torch.equal(engramdb.fetch_e_t_tensor(store, ids, scale=scale), values)
    with (tmp_path / "s" / "shard_000.bin").open("rb") as file:
        pages = engramdb.PageReader(32).read_pages([file.fileno()] * 5, list(range(0, 160, 32)))
    assert b"".join(pages) == made.rows[2][0].tobytes()

    ple = described.ple
    module = adapters.DiskPleNGramEmbedding(
        store=store, embedding_dim=ple["ple_embed_dim"], layer_multipliers=ple["multipliers"],
        scale=scale, eos=ple["eos"], prime_sizes=ple["prime_sizes"], offsets=ple["offsets"],
    )  # fmt: skip
    assert torch.equal(module(torch.tensor(TOKENS)), values.flatten(1))
    module.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_plain_floats(tmp_path: Path, dtype: str) -> None:
    engramdb = pytest.importorskip("engramdb")
    made = checkpoints.qwen_ple(tmp_path / "q")
    options = {} if dtype == "bfloat16" else {"dtype": dtype}
    result = converted(made.path, "engramdb", tmp_path / "s", **options)
    assert dtype in result.notes[0]
    source, before = find_artifact(tmp_path / "s").open(), find_artifact(made.path).open()
    ids = np.arange(0, len(made.rows[2]), 7)
    assert np.array_equal(source.vectors(2, ids), before.vectors(2, ids))
    about = json.loads((tmp_path / "s" / "bundle.json").read_text())["memory"]["store"]
    store = engramdb.Store(str(tmp_path / "s"), about["shards"], about["rows_per_shard"],
                           about["width"])  # fmt: skip
    assert store.fetch(ids.tolist()) == source.stored(2, ids)[0].tobytes()


def test_rounding_is_asked_for(tmp_path: Path) -> None:
    made = checkpoints.qwen_ple(tmp_path / "q")
    converted(made.path, "engramdb", tmp_path / "s", dtype="fp8")
    source = find_artifact(tmp_path / "s").open()
    before = find_artifact(made.path).open().vectors(2, np.arange(50))
    assert np.allclose(source.vectors(2, np.arange(50)), before, atol=0.3)


def test_layers_of_which_a_store_holds_one(tmp_path: Path) -> None:
    """The second layer has multipliers of its own, which the bundle says."""
    geometry = Geometry(
        scheme="qwen-ple", vocab_size=300, eos_id=7, rows_per_head=(97,), layers=(2, 5)
    )
    build_table(BuildTableRequest(geometry=geometry, dim=16, dtype="fp8", out=tmp_path / "t.zarr"))
    with pytest.raises(InputError, match="rows of 2 layers, and a store holds one"):
        converted(tmp_path / "t.zarr", "engramdb", tmp_path / "s")
    converted(tmp_path / "t.zarr", "engramdb", tmp_path / "s", layers=(5,))
    source = find_artifact(tmp_path / "s").open()
    before = find_artifact(tmp_path / "t.zarr").open()
    assert source.layers == (5,)
    assert np.array_equal(
        hash_tokens(source.layout, TOKENS, layer=5), hash_tokens(before.layout, TOKENS, layer=5)
    )
    assert verify(VerifyRequest(path=tmp_path / "s", folder=tmp_path)).ok
    for layer in (2, 5):  # a table of one of them: of the first alone the choices give it again
        out = tmp_path / f"{layer}.zarr"
        table(tmp_path / "t.zarr", out, layers=(layer,))
        found = verify(VerifyRequest(path=out, folder=tmp_path))
        assert found.ok
        assert any("choices" in line for line in found.not_checked) == (layer == 5)


def test_what_a_store_cannot_hold(
    tmp_path: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    demo = small_artifacts.demo(tmp_path / "d", small_vocab, layers=(1,))
    with pytest.raises(InputError, match=r"no token map|hashed by engram-v1"):
        converted(demo.path, "engramdb", out)
    deepseek = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    with pytest.raises(InputError, match=r"hashed by deepseek-v4\.1"):
        converted(deepseek.path, "engramdb", out)
    packed = checkpoints.qwen_ple(tmp_path / "p", dtype="nvfp4")
    with pytest.raises(InputError, match="rows of nvfp4, which engramdb does not hold"):
        converted(packed.path, "engramdb", out)
    with pytest.raises(InputError, match="leaves out rows that tokens look up"):
        converted(checkpoints.qwen_ple(tmp_path / "q").path, "engramdb", out, rows=(0, 5))
    assert not out.exists()


def test_only_own_stores_are_replaced(tmp_path: Path) -> None:
    theirs = small_artifacts.store(tmp_path / "s").path
    made = checkpoints.qwen_ple(tmp_path / "q", dtype="float8_e4m3fn")
    with pytest.raises(OutputError, match="is no store of EngramDB"):
        converted(made.path, "engramdb", theirs, force=True)
    converted(made.path, "engramdb", tmp_path / "t")
    converted(made.path, "engramdb", tmp_path / "t", force=True)
    (tmp_path / "t" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        converted(made.path, "engramdb", tmp_path / "t", force=True)


@pytest.mark.parametrize("change", [{"ple_layer_ids": [1, 2]}, {"seed": "x"}])
def test_keys_of_ours_are_checked(tmp_path: Path, change: dict[str, Any]) -> None:
    made = small_artifacts.store(tmp_path / "s", ple=change)
    with pytest.raises(ArtifactError):
        find_artifact(made.path).open()
