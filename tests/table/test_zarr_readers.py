"""Other programs open a table or statistics naturally: zarr-python, xarray and tensorstore.

Shards too, whose rows lie where they lie without; behind an address a row costs one small request.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from remote.server import Behaviour, serving
from table.tables import build, counted, mapped_layout, stored_rows, table_spec

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.hashing.schemes import hash_layout
from engram_cli.remote.locate import locate
from engram_cli.rows import DTYPES
from engram_cli.table.attributes import META
from engram_cli.table.build import build_store
from engram_cli.table.convert import conversion
from engram_cli.table.store import open_array, open_table

INNER = 8 * 5 * 4  # bytes of eight float32 rows of five values
DIMENSIONS = {
    "0": ["row_0", "value"],
    "3": ["row_3", "value"],
    "hits/0": ["row_0"],
    "hits/3": ["row_3"],
    "lookup": ["token_id"],
}


def metadata(path: Path, name: str) -> Any:
    return json.loads((path / name / META).read_text())


def test_every_array_says_what_it_is(tmp_path: Path) -> None:
    build(tmp_path / "t", tokens=7)
    for name, names in DIMENSIONS.items():
        meta = metadata(tmp_path / "t", name)
        assert meta["dimension_names"] == names
        assert meta["attributes"]["long_name"]
    about = metadata(tmp_path / "t", "3")["attributes"]
    assert (about["logical_dtype"], about["logical_width"]) == ("float32", "5")


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_name_has_one_length(tmp_path: Path, dtype: str) -> None:
    build(tmp_path / "t", dtype=dtype, dim=37, tokens=7)
    table = open_table(tmp_path / "t")
    lengths: dict[str, set[int]] = {}
    for name, array in table.arrays.items():
        for dimension, length in zip(
            metadata(table.path, name)["dimension_names"], array.shape, strict=True
        ):
            lengths.setdefault(dimension, set()).add(length)
    assert all(len(found) == 1 for found in lengths.values()), lengths
    text = metadata(table.path, "0")["attributes"]["stored_as"]
    assert ("scale" in text) == (DTYPES.load(dtype).scaling is not None)


def test_metadata_is_no_part_of_the_digest(tmp_path: Path) -> None:
    """A table of an earlier version, without names, opens and has the digest it had."""
    digest = build(tmp_path / "t", tokens=7).digest
    for name in DIMENSIONS:
        meta = metadata(tmp_path / "t", name)
        del meta["dimension_names"]
        meta["attributes"] = {}
        (tmp_path / "t" / name / META).write_text(json.dumps(meta))
    assert open_table(tmp_path / "t").digest == digest
    assert verify_table(tmp_path / "t").ok


@pytest.mark.parametrize("sharded", [False, True])
def test_xarray(tmp_path: Path, sharded: bool) -> None:
    xarray = pytest.importorskip("xarray")
    build(tmp_path / "t", tokens=7, inner_size=INNER if sharded else None)
    table = open_table(tmp_path / "t")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = xarray.open_zarr(tmp_path / "t", consolidated=False, chunks=None)
        hits = xarray.open_zarr(tmp_path / "t", group="hits", consolidated=False, chunks=None)
    heights = {layer: mapped_layout().layer(layer).rows for layer in (0, 3)}
    sizes = {"row_0": heights[0], "row_3": heights[3], "value": 5, "token_id": 40}
    assert dict(found.sizes) == sizes
    own = found["3"].isel(row_3=[1, 50]).values
    np.testing.assert_array_equal(own, table.rows(3, [1, 50]))
    np.testing.assert_array_equal(hits["3"].values, counted(3))
    assert found["3"].attrs["long_name"] == "rows of layer 3"
    assert found.attrs["format"] == "engram-table"


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_shards_hold_the_same_rows_at_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    plain = {"dtype": dtype, "dim": 37, "tokens": 7, "chunk_rows": 48}
    build(tmp_path / "plain", **plain)
    row = DTYPES.load(dtype).width(37) * DTYPES.load(dtype).physical.itemsize
    build(tmp_path / "sharded", **plain, inner_size=8 * row)
    one, two = open_table(tmp_path / "plain"), open_table(tmp_path / "sharded")
    assert (one.attributes["version"], two.attributes["version"]) == (1, 2)
    assert verify_table(tmp_path / "sharded").ok
    for name, array in one.arrays.items():
        other = two.arrays[name]
        here = open_array(one.path, array).read(0, array.rows)
        assert here.tobytes() == open_array(two.path, other).read(0, array.rows).tobytes()
        peer = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(two.path / name)}},
            open=True,
            read=True,
        ).result()
        assert peer.read().result().tobytes() == here.tobytes()
        assert zarr.open_array(two.path / name, mode="r")[:].tobytes() == here.tobytes()
        if name in ("0", "3"):
            assert other.inner_rows == 8
            raw = (two.path / other.file(0)).read_bytes()
            assert raw[: array.chunk_bytes] == (one.path / array.file(0)).read_bytes()
            assert peer.chunk_layout.read_chunk.shape[0] == 8


def ranges(served: Behaviour) -> list[int]:
    """Return the bytes of each range of a chunk file that was asked for, and forget them."""
    found = []
    for method, path, asked in served.asked:
        if method == "GET" and "/c." in path:
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
            suffix = re.fullmatch(r"bytes=-(\d+)", asked or "")
            found.append(
                int(match[2]) + 1 - int(match[1]) if match else int(suffix[1]) if suffix else -1
            )
    served.asked.clear()
    return found


def test_one_row_is_one_request(tmp_path: Path) -> None:
    """engram: one range of a row, sharded or not. tensorstore: the index once, an inner chunk."""
    for name, inner in (("plain", None), ("sharded", INNER)):
        build(tmp_path / name, chunk_rows=160, inner_size=inner)
    expected = open_table(tmp_path / "plain").rows(3, [77])
    another = open_table(tmp_path / "plain").rows(3, [100])
    with serving(tmp_path) as served:
        for name in ("plain", "sharded"):
            table = open_table(locate(Path(f"{served.address}/{name}")))
            served.asked.clear()
            assert (table.rows(3, [77]) == expected).all()
            assert ranges(served) == [20]
        for name, sizes in (("plain", [-1]), ("sharded", [16 * 20 + 4, INNER])):
            spec = {"driver": "zarr3", "kvstore": f"{served.address}/{name}/3/"}
            context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**20}})
            peer = tensorstore.open(spec, open=True, read=True, context=context).result()
            served.asked.clear()
            assert (peer[77].read().result() == expected[0]).all()
            assert ranges(served) == sizes
            assert (peer[100].read().result() == another[0]).all()
            assert ranges(served)[-1] == sizes[-1]


def test_sizes_in_bytes(tmp_path: Path) -> None:
    spec = table_spec(chunk_rows=None, chunk_size=50 * 20, inner_size=3 * 20)
    assert {array.chunk_rows for array in spec.row_arrays.values()} == {51}  # whole inner chunks
    build(tmp_path / "t", chunk_rows=None, chunk_size=1000)
    assert open_table(tmp_path / "t").arrays["3"].chunk_rows == 50
    tall = hash_layout("qwen-ple", vocab_size=90, eos_id=1, rows_per_head=2**17, heads=2)
    with pytest.raises(InputError, match="an inner chunk make more than"):
        table_spec(tall, chunk_rows=2**18, inner_size=1)


def test_a_sharded_table_is_converted_both_ways(tmp_path: Path) -> None:
    build(tmp_path / "sharded", inner_size=INNER)
    source = open_table(tmp_path / "sharded")
    for name, inner in (("plain", None), ("again", INNER)):
        spec = conversion(source, "float32", chunk_rows=32, inner_size=inner, copy=True)
        build_store(spec, tmp_path / name)
        for layer in source.layers:
            assert stored_rows(open_table(tmp_path / name), layer) == stored_rows(source, layer)


def test_damaged_shards_are_told(tmp_path: Path) -> None:
    build(tmp_path / "t", inner_size=INNER)
    file = tmp_path / "t" / "3" / META
    meta = json.loads(file.read_text())
    sharding = meta["codecs"][0]["configuration"]
    for change, message in (
        ({"chunk_shape": [7, 5]}, "has inner chunks"),
        ({"chunk_shape": [0, 5]}, "has inner chunks"),
        ({"chunk_shape": [8, 1]}, "has inner chunks"),
        ({"index_location": "start"}, "has an index"),
        ({"index_codecs": []}, "has an index"),
        ({"codecs": [{"name": "zstd", "configuration": {}}]}, "has codecs"),
    ):
        meta["codecs"][0]["configuration"] = sharding | change
        file.write_text(json.dumps(meta))
        with pytest.raises(ArtifactError, match=message):
            open_table(tmp_path / "t")
    meta["codecs"][0]["configuration"] = sharding
    file.write_text(json.dumps(meta))
    chunk = tmp_path / "t" / "3" / "c.0.0"
    raw = bytearray(chunk.read_bytes())
    raw[-1] ^= 1  # of the index
    chunk.write_bytes(raw)
    assert "its bytes have changed" in verify_table(tmp_path / "t").problems[0]
