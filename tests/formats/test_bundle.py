"""Bundles: what is written is read, by us and by the library; what was tampered with is not."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from engram_cli.errors import ArtifactError, EngramError, InputError, OutputError
from engram_cli.files import canonical_json, sha256_bytes
from engram_cli.formats.bundle import BundleSpec, read_bundle
from engram_cli.formats.bundle_writer import plan_shards, write_bundle
from engram_cli.formats.dense import first_values
from engram_cli.formats.tensors import Array, physical_dtype
from engram_cli.hashing.schemes import hash_layout
from engram_cli.vocab.compress import CompressedVocab

DIM = 6


def make_spec(vocab: CompressedVocab | None, dtype: str = "float32") -> BundleSpec:
    common: dict[str, Any] = {"orders": (2, 3), "heads": 2, "rows_per_head": 50}
    if vocab is None:
        layout = hash_layout("qwen-ple", vocab_size=100, eos_id=3, layers=(1, 4), **common)
    else:
        layout = hash_layout("engram-v1", vocab, layers=(1, 3), **common)
    return BundleSpec(
        layout=layout,
        layers=layout.layer_ids,
        dim=DIM,
        dtype=dtype,
        hidden_size=8,
        num_layers=4,
        model_type="llama",
    )


def table_of(spec: BundleSpec, layer: int) -> Array:
    """A layer's table with different bytes everywhere, physical dtype."""
    generator = np.random.default_rng(layer)
    values = generator.standard_normal((spec.rows(layer), spec.dim)).astype(np.float32)
    if spec.dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(physical_dtype(spec.dtype))


def in_chunks(spec: BundleSpec, step: int) -> Callable[[int], Iterator[tuple[int, Array]]]:
    def rows(layer: int) -> Iterator[tuple[int, Array]]:
        table = table_of(spec, layer)
        for first in range(0, len(table), step):
            yield first, table[first : first + step]

    return rows


def write(spec: BundleSpec, path: Path, **options: Any) -> list[Any]:
    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_shapes, layer=layer, seed=0, zero_rows=zero_rows)

    rows = options.pop("rows", in_chunks(spec, 37))
    return write_bundle(path, spec, rows, dense, tool_version="0", **options)


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
        maps = bundle.row_maps(layer)
        assert len(maps) > 2
        assert np.array_equal(np.concatenate(maps), table_of(spec, layer))
        expected = first_values(spec.dense_shapes, layer=layer, seed=0, zero_rows=False)
        assert set(bundle.dense[layer]) == set(expected)
        for name, value in expected.items():
            assert np.array_equal(bundle.dense[layer][name], value)


def test_the_library_reads_every_file_of_a_bundle(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    spec = make_spec(small_vocab)
    write(spec, tmp_path / "engram", shard_bytes=4096 + 200 * spec.row_bytes)
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


# Tampering


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "engram"
    spec = make_spec(small_vocab)
    write(spec, path, shard_bytes=4096 + 200 * spec.row_bytes)
    return path


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "engram"))


def edit(bundle: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads((bundle / "engram.json").read_bytes())
    change(document)
    (bundle / "engram.json").write_bytes(canonical_json(document))


def set_at(*keys: Any) -> Callable[[Any], None]:
    *path, last, value = keys

    def change(document: Any) -> None:
        for key in path:
            document = document[key]
        document[last] = value

    return change


def drop(*path: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


SHARD = ("layers", 0, "shards", 0)
DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    "change",
    [
        set_at("format", "engram-stats"),
        set_at("version", 2),
        set_at("version", "1"),
        set_at("version", True),
        drop("layout"),
        set_at("layout", []),
        set_at("layout", "layers", 0, "moduli", 0, 101),
        set_at("fingerprint", DIGEST),
        drop("files"),
        set_at("files", []),
        set_at("files", "dense.safetensors", 3),
        set_at("files", "dense.safetensors", "bytes", 10),
        set_at("files", "dense.safetensors", "digest", DIGEST),
        drop("files", "dense.safetensors"),
        drop("files", "vocabulary.safetensors"),
        drop("files", "rows-00001-of-00004.safetensors"),
        set_at("files", "../engram/dense.safetensors", {"bytes": 1, "digest": DIGEST}),
        set_at("files", ".hidden", {"bytes": 1, "digest": DIGEST}),
        set_at("files", "gone.safetensors", {"bytes": 1, "digest": DIGEST}),
        set_at(*SHARD, "file", "../engram/rows-00001-of-00004.safetensors"),
        set_at(*SHARD, "file", "/etc/passwd"),
        set_at(*SHARD, "file", "rows-00003-of-00004.safetensors"),
        set_at(*SHARD, "file", 7),
        set_at(*SHARD, "first_row", 1),
        set_at(*SHARD, "rows", 10**30),
        set_at(*SHARD, "rows", -1),
        set_at(*SHARD, "rows", 199),
        set_at("layers", 0, "shards", []),
        set_at("layers", 0, "rows", 3),
        set_at("layers", 0, "layer", 2),
        set_at("layers", 0, "decoder_layer", 0),
        set_at("layers", []),
        set_at("model", "num_hidden_layers", 3),
        set_at("model", "hidden_size", 16),
        set_at("model", "hidden_size", 8.0),
        set_at("model", []),
        set_at("module", "kind", "engram-v9"),
        set_at("module", "streams", 2),
        set_at("module", "conv_dilation", 1),
        set_at("rows", "dim", 5),
        set_at("rows", "dtype", "float16"),
        set_at("rows", "dtype", "float8"),
        set_at("rows", "dtype", []),
    ],
)
def test_a_changed_description_is_refused(bundle: Path, change: Callable[[Any], None]) -> None:
    edit(bundle, change)
    with pytest.raises(ArtifactError) as caught:
        read_bundle(bundle)
    assert caught.value.hint


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"format": "engram-bundle"}'])
def test_a_description_that_is_none_is_refused(bundle: Path, text: bytes) -> None:
    (bundle / "engram.json").write_bytes(text)
    with pytest.raises(ArtifactError):
        read_bundle(bundle)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document, containers included."""
    if path:
        yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from leaves(inner, (*path, key))


STRANGE = [None, True, -1, 0, 2**70, 0.5, float("inf"), float("nan"), "", "x", "../x", [], {}, [[]]]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_no_description_makes_the_reader_stumble(
    data: st.DataObject, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    document = json.loads((pristine / "engram.json").read_bytes())
    path = data.draw(st.sampled_from(list(leaves(document))))
    set_at(*path, data.draw(st.sampled_from(STRANGE)))(document)
    folder = tmp_path_factory.getbasetemp() / "stumble"
    if not folder.exists():
        shutil.copytree(pristine, folder)
    (folder / "engram.json").write_text(json.dumps(document))
    # Some values decide nothing; nothing but an error of ours may come of the others.
    with suppress(EngramError):
        read_bundle(folder)


def test_other_files_are_ignored(bundle: Path) -> None:
    (bundle / "README.md").write_text("a model card")
    read_bundle(bundle, verify=True)


def test_a_newer_bundle_says_so(bundle: Path) -> None:
    edit(bundle, set_at("version", 7))
    with pytest.raises(ArtifactError, match=r"version 7, newer than 1") as caught:
        read_bundle(bundle)
    assert caught.value.hint == "upgrade engram"


@pytest.mark.parametrize(
    "name",
    ["dense.safetensors", "vocabulary.safetensors", "rows-00002-of-00004.safetensors"],
)
def test_changed_files_are_refused(bundle: Path, name: str) -> None:
    raw = bytearray((bundle / name).read_bytes())
    raw[-1] ^= 1
    (bundle / name).write_bytes(raw)
    if name.startswith("rows"):
        read_bundle(bundle)  # a flipped bit among 100 GB of rows is not looked for...
    with pytest.raises(ArtifactError, match=f"{name} was changed"):
        read_bundle(bundle, verify=True)  # ...unless asked to
    (bundle / name).write_bytes(raw[:-1])
    with pytest.raises(ArtifactError, match=f"{name}: {len(raw) - 1} bytes, not {len(raw)}"):
        read_bundle(bundle)
    (bundle / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        read_bundle(bundle)


def test_a_shard_with_another_header_is_refused(bundle: Path) -> None:
    name = "rows-00002-of-00004.safetensors"
    raw = (bundle / name).read_bytes()
    (bundle / name).write_bytes(raw.replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(ArtifactError, match=r"does not hold layers\.1\.rows"):
        read_bundle(bundle)
    (bundle / name).write_bytes(b"\xff" * len(raw))
    with pytest.raises(ArtifactError, match="no safetensors file"):
        read_bundle(bundle)


def test_another_vocabulary_is_refused_even_with_its_digest(
    bundle: Path, small_vocab: CompressedVocab
) -> None:
    path = bundle / "vocabulary.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-4:] = small_vocab.lookup[:1].tobytes()
    path.write_bytes(raw)
    edit(bundle, set_at("files", path.name, "digest", sha256_bytes(bytes(raw))))
    with pytest.raises(EngramError, match="made for vocabulary"):
        read_bundle(bundle)


def test_no_bundle_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="no bundle at"):
            read_bundle(path)
