"""A finished table is read by zarr and by us; one that was damaged or tampered with is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from table.tables import (
    LAYERS,
    build,
    counted,
    mapped_layout,
    raw_layout,
    stored_rows,
    table_spec,
    tamper,
)

from engram_cli.errors import ArtifactError, EngramError, IncompleteError, InputError
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.rows import DTYPES
from engram_cli.table.inits.normal import Normal
from engram_cli.table.store import open_array, open_table

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "t.zarr"
    build(out, tokens=99)
    return out


@pytest.fixture
def table(built: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(built, tmp_path / "t.zarr"))


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("chunk_rows", [None, 1, 32, 53, 212])
def test_zarr_reads_the_bytes_that_were_mapped(
    tmp_path: Path, dtype: str, chunk_rows: int | None
) -> None:
    out = tmp_path / "t.zarr"
    build(out, dtype=dtype, chunk_rows=chunk_rows, tokens=7)
    table = open_table(out)
    group = zarr.open_group(out, mode="r")
    # No warning about a file that zarr does not know (warnings are errors here).
    names = {name for name, _ in group.members(max_depth=None)}
    scaled = {"scales", "scales/0", "scales/3"} if table.row_type.scaling else set()
    assert names == {"0", "3", "hits", "hits/0", "hits/3", "lookup"} | scaled
    for layer in LAYERS:
        if scaled:
            array = table.arrays[f"scales/{layer}"]
            stored = open_array(out, array).read(0, array.rows)
            assert group[f"scales/{layer}"][:].tobytes() == stored.tobytes()
        assert group[str(layer)][:].tobytes() == stored_rows(table, layer)
        np.testing.assert_array_equal(group[f"hits/{layer}"][:], counted(layer))
        np.testing.assert_array_equal(table.hits(layer), counted(layer))
    np.testing.assert_array_equal(group["lookup"][:], mapped_layout().lookup)
    assert group.attrs["complete"] is True


def test_an_open_table_says_what_it_is(built: Path) -> None:
    table = open_table(str(built))
    assert (table.dim, table.dtype, table.init) == (5, "float32", "normal")
    assert table.layout.fingerprint == mapped_layout().fingerprint
    assert table.attributes["init"]["parameters"]["std"] == 0.02
    assert table.attributes["statistics"] == {"tokens": 99}
    ids = np.arange(40)
    np.testing.assert_array_equal(
        hash_tokens(table.layout, ids, layer=3), hash_tokens(mapped_layout(), ids, layer=3)
    )
    firsts = [first for first, _ in table.chunks(3)]
    assert firsts == list(range(0, 212, 32))
    assert all(not rows.flags.writeable for _, rows in table.chunks(3))


def test_a_layout_of_raw_ids_stores_no_lookup_and_no_hits(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr", raw_layout())
    table = open_table(tmp_path / "t.zarr")
    assert not (tmp_path / "t.zarr" / "lookup").exists()
    assert table.layout.lookup is None
    assert table.hits() is None
    # One layer: it need not be named. The rows beyond the heads are there as well.
    assert len(stored_rows(table)) == raw_layout().layer().rows * 5 * 4


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("chunk_rows", [None, 32])
def test_rows_are_gathered_from_their_chunks(
    tmp_path: Path, dtype: str, chunk_rows: int | None
) -> None:
    build(tmp_path / "t.zarr", dtype=dtype, chunk_rows=chunk_rows)
    table = open_table(tmp_path / "t.zarr")
    wanted = np.random.default_rng(0).integers(0, 212, (70,))
    expected = np.concatenate([values for _, values in table.values(3)])[wanted]
    np.testing.assert_array_equal(table.rows(3, wanted), expected)
    np.testing.assert_array_equal(table.rows(3, wanted.tolist()), expected)
    assert table.rows(3, []).shape == (0, 5)


@pytest.mark.parametrize("indices", [[212], [-1], [0.5], [[1, 2]], 2**40])
def test_rows_outside_are_refused(built: Path, indices: Any) -> None:
    with pytest.raises(InputError, match=r"row|indices"):
        open_table(built).rows(3, indices)


def test_an_unknown_layer_is_named(built: Path) -> None:
    with pytest.raises(InputError, match="no layer 2"):
        open_table(built).hits(2)


def test_what_is_no_table_is_refused(tmp_path: Path, built: Path) -> None:
    with pytest.raises(InputError, match="no table at"):
        open_table(tmp_path / "none.zarr")
    with pytest.raises(ArtifactError, match="is no table"):
        open_table(tmp_path)
    with pytest.raises(ArtifactError, match="is no table"):
        open_table(built / "zarr.json")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(ArtifactError, match="no Engram table"):
        open_table(tmp_path / "other.zarr")


def test_a_half_built_table_says_how_to_go_on(tmp_path: Path, table: Path) -> None:
    tamper(table, lambda a: a.update(complete=False))
    with pytest.raises(IncompleteError, match="half-built") as caught:
        open_table(table)
    assert "resumes from there" in caught.value.hint
    (tmp_path / "u.zarr.partial").mkdir()
    for name in ("u.zarr", "u.zarr.partial"):
        with pytest.raises(IncompleteError, match="half-built"):
            open_table(tmp_path / name)


def test_lost_and_truncated_chunks_are_found_on_opening(table: Path) -> None:
    chunk = table / "3" / "c.2.0"
    whole = chunk.read_bytes()
    for broken in (whole[:-1], whole + b"x", b""):
        chunk.write_bytes(broken)
        with pytest.raises(ArtifactError, match=rf"c\.2\.0 has {len(broken)} bytes, not 640"):
            open_table(table)
    chunk.unlink()
    with pytest.raises(ArtifactError, match=r"c\.2\.0 cannot be read: No such file"):
        open_table(table)


def test_a_chunk_that_goes_away_after_opening_is_one_line(table: Path) -> None:
    store = open_table(table)
    (table / "3" / "c.2.0").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"c\.2\.0 cannot be mapped"):
        list(store.chunks(3))


def _set(*path: str | int, to: Any) -> Edit:
    def edit(attributes: dict[str, Any]) -> None:
        at: Any = attributes
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = to

    return edit


TAMPERED: dict[str, Edit] = {
    "dim too large": _set("dim", to=6),
    "dim huge": _set("dim", to=2**60),
    "dim negative": _set("dim", to=-5),
    "dim a bool": _set("dim", to=True),
    "dim text": _set("dim", to="5"),
    "dtype unknown": _set("dtype", to="float12"),
    "dtype a list": _set("dtype", to=["float32"]),
    "dtype of another width": _set("dtype", to="bfloat16"),
    "dtype of the same width": _set("dtype", to="float16"),
    "init text": _set("init", to="normal"),
    "version 0": _set("version", to=0),
    "version text": _set("version", to="1"),
    "no layout": lambda a: a.pop("layout"),
    "layout of other moduli": _set("layout", "layers", 0, "moduli", 0, to=47),
    "layout too high": _set("layout", "layers", 0, "rows", to=2**46),
    "layout negative": _set("layout", "layers", 0, "rows", to=-1),
    "layout infinite": _set("layout", "heads", to=float("inf")),
    "layer a path": _set("layout", "layers", 0, "layer", to="../../etc"),
    "layer negative": _set("layout", "layers", 0, "layer", to=-1),
    "fingerprint": _set("fingerprint", to="sha256:0"),
    "hits that are not there": _set("statistics", to={"tokens": -1}),
    "hits that nobody lists": _set("statistics", to=None),
    "manifest a list": _set("manifest", to=[]),
    "manifest by another sum": _set("manifest", "algorithm", to="crc32"),
    "manifest without a chunk": lambda a: a["manifest"]["files"].pop("3/c.2.0"),
    "manifest with a path": lambda a: a["manifest"]["files"].update(
        {"../../etc/passwd": a["manifest"]["files"].pop("3/c.2.0")}
    ),
    "manifest of an absolute path": lambda a: a["manifest"]["files"].update(
        {"/etc/passwd": a["manifest"]["files"].pop("3/c.2.0")}
    ),
    "manifest with another size": _set("manifest", "files", "3/c.2.0", 0, to=641),
    "manifest with a huge size": _set("manifest", "files", "3/c.2.0", 0, to=2**70),
    "manifest with half an entry": _set("manifest", "files", "3/c.2.0", to=[640]),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_attributes_are_refused(table: Path, name: str) -> None:
    tamper(table, TAMPERED[name])
    with pytest.raises(ArtifactError):
        open_table(table)


def test_changed_attributes_without_a_new_digest_are_refused(table: Path) -> None:
    tamper(table, _set("init", "parameters", "std", to=0.5), signed=False)
    with pytest.raises(ArtifactError, match="attributes and digest disagree"):
        open_table(table)
    tamper(table, lambda a: a.pop("digest"), signed=False)
    with pytest.raises(ArtifactError, match="is damaged"):
        open_table(table)


def test_a_newer_version_asks_for_an_upgrade(table: Path) -> None:
    tamper(table, _set("version", to=3))
    with pytest.raises(ArtifactError, match="newer") as caught:
        open_table(table)
    assert "upgrade" in caught.value.hint


METADATA: dict[str, Edit] = {
    "more rows": _set("shape", 0, to=213),
    "rows that do not end": _set("shape", 0, to=2**62),
    "negative rows": _set("shape", 0, to=-212),
    "wider": _set("shape", 1, to=6),
    "one dimension": _set("shape", to=[212]),
    "no shape": lambda m: m.pop("shape"),
    "chunks of nothing": _set("chunk_grid", "configuration", "chunk_shape", 0, to=0),
    "chunks of one row": _set("chunk_grid", "configuration", "chunk_shape", 0, to=1),
    "chunks too high": _set("chunk_grid", "configuration", "chunk_shape", 0, to=213),
    "narrow chunks": _set("chunk_grid", "configuration", "chunk_shape", 1, to=1),
    "another type": _set("data_type", to="int32"),
    "compressed": lambda m: m["codecs"].append({"name": "zstd", "configuration": {}}),
    "big-endian": _set("codecs", 0, "configuration", "endian", to="big"),
    "other file names": _set("chunk_key_encoding", "configuration", "separator", to="/"),
    "irregular": _set("chunk_grid", "name", to="rectangular"),
    "a group": _set("node_type", to="group"),
}


@pytest.mark.parametrize("name", METADATA)
def test_tampered_arrays_are_refused(table: Path, name: str) -> None:
    path = table / "3" / "zarr.json"
    document = json.loads(path.read_bytes())
    METADATA[name](document)
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="is damaged"):
        open_table(table)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"attributes":3}']
)
@pytest.mark.parametrize("name", ["zarr.json", "3/zarr.json"])
def test_metadata_that_is_no_json_is_refused(table: Path, name: str, content: bytes) -> None:
    (table / name).write_bytes(content)
    with pytest.raises(EngramError) as caught:
        open_table(table)
    assert isinstance(caught.value, ArtifactError)


def test_another_lookup_is_refused(table: Path) -> None:
    lookup = np.fromfile(table / "lookup" / "c.0", dtype="<i4")
    lookup[[3, 4]] = lookup[[4, 3]]
    lookup.tofile(table / "lookup" / "c.0")
    with pytest.raises(ArtifactError, match="lookup is damaged"):
        open_table(table)


def test_reading_a_table_needs_no_zarr(built: Path) -> None:
    code = (
        "import sys; from engram_cli import open_table; "
        f"t = open_table({str(built)!r}); t.rows(3, [0, 211]); list(t.chunks(0)); t.hits(0); "
        "sys.exit('zarr' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    digests = {
        name: build(tmp_path / f"{name}.zarr", **options).digest
        for name, options in {
            "one": {"threads": 1},
            "two": {"threads": 3},
            "seed": {"seed": 1},
            "std": {"std": 0.5},
            "dtype": {"dtype": "float16"},
            "hits": {"tokens": 5},
            "chunks": {"chunk_rows": 31},
        }.items()
    }
    assert digests["one"] == digests["two"]
    assert len(set(digests.values())) == len(digests) - 1


def test_what_cannot_be_a_table_is_refused() -> None:
    with pytest.raises(InputError, match="dim 0"):
        table_spec(dim=0)
    with pytest.raises(InputError, match="unknown dtype"):
        table_spec(dtype="int3")
    with pytest.raises(InputError, match="0 rows a chunk"):
        table_spec(chunk_rows=0)
    huge = raw_layout_of(20_000_000)
    with pytest.raises(InputError, match="files of layer 2"):
        table_spec(huge, chunk_rows=10)


def raw_layout_of(rows: int) -> Any:
    from engram_cli.hashing.schemes import hash_layout

    return hash_layout("qwen-ple", rows_per_head=rows)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_values_come_in_pieces_as_they_were_written(tmp_path: Path, dtype: str) -> None:
    build(tmp_path / "t.zarr", dtype=dtype, chunk_rows=32, dim=40)
    table = open_table(tmp_path / "t.zarr")
    whole = np.concatenate([values for _, values in table.values(3)])
    expected = np.empty((212, 40), np.float32)
    Normal().filler(3, 40)(0, expected)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, expected, atol=0.02 * 4 / 7)
    for piece_rows in (1, 31, 33, 212, 1000):
        pieces = list(table.values(3, piece_rows))
        assert [first for first, _ in pieces] == list(range(0, 212, piece_rows))
        assert np.concatenate([values for _, values in pieces]).tobytes() == whole.tobytes()
    with pytest.raises(InputError, match="0 rows a piece"):
        list(table.values(3, 0))
    with pytest.raises(InputError, match="rows 200 to 213"):
        table.read(3, 200, np.empty((13, 40), np.float32))
