"""Bundles: what is written is read, by us and by the library; what was tampered with is not."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats.bundles import DIM, hits_in_chunks, hits_of, in_chunks, make_spec, table_of, write
from safetensors.torch import load_file

from engram_cli.errors import ArtifactError, OutputError
from engram_cli.files import sha256_bytes
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_writer import plan_shards
from engram_cli.formats.module_spec import MODULE_KINDS, ModuleSpec, first_values, module_spec
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.safetensors import Array
from engram_cli.vocab.compress import CompressedVocab


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("raw_ids", [False, True])
def test_a_bundle_is_read_back(
    tmp_path: Path, small_vocab: CompressedVocab, dtype: str, raw_ids: bool
) -> None:
    spec = make_spec(None if raw_ids else small_vocab, dtype)
    path = tmp_path / "engram"
    # Shards of 24 rows and chunks of 37: every shard but the first is cut from two chunks.
    write(spec, path, shard_bytes=4096 + 24 * spec.row_bytes)
    bundle = read_bundle(path, verify=True)

    assert bundle.spec == spec
    assert bundle.spec.layout.fingerprint == spec.layout.fingerprint
    if not raw_ids:
        assert np.array_equal(bundle.spec.layout.lookup, small_vocab.lookup)
    for layer in spec.layers:
        maps = bundle.maps(layer)
        assert len(maps) > 2
        assert np.array_equal(np.concatenate(maps), table_of(spec, layer))
        expected = first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=False)
        assert set(bundle.dense[layer]) == set(expected)
        for name, value in expected.items():
            assert np.array_equal(bundle.dense[layer][name], value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", MODULE_KINDS)
def test_every_module_is_read_back(
    tmp_path: Path, small_vocab: CompressedVocab, kind: str, packed: bool
) -> None:
    module = module_spec(kind, streams=2, norm_eps=1e-5)
    spec = make_spec(small_vocab, module=module, packed=packed)
    write(spec, tmp_path / "engram")
    bundle = read_bundle(tmp_path / "engram", verify=True)
    assert (bundle.spec.module, bundle.spec.packed) == (module, packed)
    assert {n: v.shape for n, v in bundle.dense[3].items()} == spec.dense_shapes


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "other"},
        {"streams": 0},
        {"streams": 10**9},
        {"conv_kernel": 0},
        {"norm_eps": 1e-6},
        {"kind": "deepseek-v4.1", "norm_eps": 1e-6},
        {"kind": "qwen-ple"},
        {"kind": "qwen-ple", "norm_eps": 2.0},
    ],
)
def test_settings_that_no_module_has(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kernel|module|norm_eps"):
        ModuleSpec(**options)


def test_the_library_reads_every_file_of_a_bundle(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    spec = make_spec(small_vocab)
    hits = hits_in_chunks(spec, 60)
    write(spec, tmp_path / "engram", shard_bytes=4096 + 200 * spec.row_bytes, hits=hits)
    counted = load_file(tmp_path / "engram" / "hits-00002-of-00002.safetensors")
    assert np.array_equal(counted["layers.3.hits"].numpy(), hits_of(spec, 3))
    first = load_file(min((tmp_path / "engram").glob("rows-00001-of-*.safetensors")))
    assert np.array_equal(first["layers.1.rows"].numpy(), table_of(spec, 1)[:200])
    dense = load_file(tmp_path / "engram" / "dense.safetensors")
    assert len(dense) == 2 * len(spec.dense_shapes)
    vocabulary = load_file(tmp_path / "engram" / "vocabulary.safetensors")
    assert np.array_equal(vocabulary["lookup"].numpy(), small_vocab.lookup)


def test_shards_hold_whole_rows_and_stay_below_their_size(small_vocab: CompressedVocab) -> None:
    spec = make_spec(small_vocab)
    for limit in (4096 + spec.row_bytes, 5000, 10**9):
        shards = plan_shards(spec, limit)
        for layer in spec.layers:
            own = [shard for shard in shards if shard.layer == layer]
            ends = np.cumsum([shard.rows for shard in own]).tolist()
            assert [shard.first_row for shard in own] == [0, *ends[:-1]]
            assert ends[-1] == spec.rows(layer)
        assert all(4096 + shard.rows * spec.row_bytes <= limit for shard in shards)
        assert len({shard.file for shard in shards}) == len(shards)


def test_equal_input_gives_equal_bytes(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    spec = make_spec(small_vocab)
    one = write(spec, tmp_path / "one")
    two = write(spec, tmp_path / "two", rows=in_chunks(spec, 11))
    assert one == two
    for record in one:
        assert sha256_bytes((tmp_path / "one" / record.name).read_bytes()) == record.digest


def test_a_table_is_never_in_memory(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    layout = hash_layout(
        "engram-v1", small_vocab, orders=(2,), heads=1, rows_per_head=200_000, layers=(1,)
    )
    spec = BundleSpec(
        layout=layout, layers=(1,), dim=32, dtype="float32", hidden_size=8, num_layers=4,
        model_type="llama",
    )  # fmt: skip
    chunk = np.ones((2000, spec.dim), dtype=np.float32)

    def rows(layer: int) -> Iterator[tuple[int, Array]]:
        for first in range(0, spec.rows(layer), len(chunk)):
            yield first, chunk[: spec.rows(layer) - first]

    tracemalloc.start()
    try:
        write(spec, tmp_path / "engram", rows=rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert spec.rows(1) * spec.row_bytes > 24 * 2**20
    assert peak < 4 * 2**20


@pytest.mark.parametrize("wrong", ["short", "long", "gap", "dtype", "width"])
def test_a_table_that_is_not_the_layouts_leaves_nothing(
    tmp_path: Path, small_vocab: CompressedVocab, wrong: str
) -> None:
    spec = make_spec(small_vocab)

    def rows(layer: int) -> Iterator[tuple[int, Array]]:
        table = table_of(spec, layer)
        if wrong == "dtype":
            yield 0, table.astype(np.float64)
        elif wrong == "width":
            yield 0, table[:, :3]
        elif wrong == "gap":
            yield 0, table[:10]
            yield 11, table[11:]
        else:
            yield 0, table if wrong == "long" else table[:-1]
            if wrong == "long":
                yield len(table), table[:1]

    with pytest.raises(ArtifactError, match=r"layer 1 of the table has"):
        write(spec, tmp_path / "engram", rows=rows)
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_is_replaced_only_by_force(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    spec = make_spec(small_vocab)
    write(spec, tmp_path / "engram")
    with pytest.raises(OutputError, match="already exists"):
        write(spec, tmp_path / "engram")
    write(make_spec(small_vocab, "float16"), tmp_path / "engram", force=True)
    assert read_bundle(tmp_path / "engram").spec.dtype == "float16"
    assert [entry.name for entry in tmp_path.iterdir()] == ["engram"]


def test_rows_decide_whether_the_value_projection_is_zero(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    for dtype, minus_zero in (("float32", -0.0), ("float16", -0.0), ("bfloat16", 0x8000)):
        spec = make_spec(small_vocab, dtype)

        def rows(layer: int, spec=spec, zero=minus_zero) -> Iterator[tuple[int, Array]]:
            table = np.full((spec.rows(layer), DIM), zero, dtype=physical_dtype(spec.dtype))
            if layer == 3:
                table[-1, -1] = 1
            yield 0, table

        write(spec, tmp_path / dtype, rows=rows)
        dense = read_bundle(tmp_path / dtype).dense
        assert dense[1]["value_proj.weight"].any()
        assert not dense[3]["value_proj.weight"].any()
        for layer in (1, 3):
            assert not dense[layer]["value_proj.bias"].any()
            assert not dense[layer]["short_conv.conv.weight"].any()
            assert dense[layer]["key_projs.0.weight"].any()
            assert (dense[layer]["norm1.0.weight"] == 1).all()
