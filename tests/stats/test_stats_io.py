"""read(write(x)) == x, the same counts give the same bytes, and what is damaged is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
import zarr.codecs
from stats.truth import columns_of, count, layout_of, orders_of, zipf_documents

from engram_cli import hash_layout
from engram_cli.errors import (
    ArtifactError,
    EngramError,
    IncompleteError,
    InputError,
    LayoutError,
    OutputError,
)
from engram_cli.stats import arrays, stats_io
from engram_cli.stats.stats_io import read_stats, write_stats
from engram_cli.stats.totals import FULL, Counts
from engram_cli.vocab.compress import CompressedVocab

LAYOUT = layout_of(moduli=(101, 103, 10007, 10009), heads=2, layers=(1, 7))
DOCUMENTS = zipf_documents(seed=4, count=20, length=40, size=50)


def counted(**options: int) -> Counts:
    return count(DOCUMENTS, LAYOUT, **options)


def write(
    counts: Counts, path: Path, sections: Mapping[str, object] | None = None, **options: Any
) -> None:
    results = {"orders": orders_of(counts), "columns": columns_of(counts)} | dict(sections or {})
    write_stats(counts, lambda: results, path, **options)


def bytes_of(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    write(counted(sample_size=50), tmp_path / "stats", corpus={"files": 3, "empty_files": 1})
    return tmp_path / "stats"


@pytest.mark.parametrize("size", [50, 10_000])
@pytest.mark.parametrize("chunk", [4096, 2**22])
def test_what_is_read_is_what_was_written(
    size: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_CHUNK", chunk)
    counts = counted(sample_size=size)
    write(counts, tmp_path / "stats")
    found = read_stats(tmp_path / "stats")
    assert found.layout == LAYOUT
    assert (found.tokens, found.documents, found.joined) == (counts.tokens, 20, False)
    for layer in (1, 7):
        assert np.array_equal(found.hits(layer), counts.hits[layer])
        assert found.hits(layer).dtype == np.uint32
    for one, two in zip(found.samples(), counts.samples, strict=True):
        assert (one.order, one.size, one.threshold) == (two.order, two.size, two.threshold)
        assert np.array_equal(one.hashes, two.hashes)
        assert np.array_equal(one.counts, two.counts)
        assert np.array_equal(one.tokens, two.tokens)
    assert columns_of(found.counts()) == columns_of(counts)
    assert orders_of(found.counts().merge(counts))[0].windows == 2 * counts.tokens


def test_the_same_counts_give_the_same_bytes(tmp_path: Path) -> None:
    write(counted(), tmp_path / "one")
    write(counted(threads=3, block=77), tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert set(os.listdir(tmp_path / "one")) == {"stats.json", "counters.zarr", "sample.parquet"}


def test_a_vocabulary_map_is_kept_and_bound(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=101, heads=2, layers=(1,))
    write(count(DOCUMENTS, layout), tmp_path / "stats")
    found = read_stats(tmp_path / "stats")
    assert found.layout.fingerprint == layout.fingerprint
    assert found.layout.lookup is not None
    assert np.array_equal(found.layout.lookup, small_vocab.lookup)


def test_the_document_holds_the_figures(stats: Path) -> None:
    document = json.loads((stats / "stats.json").read_bytes())
    assert document["corpus"] == {"files": 3, "empty_files": 1}
    assert [entry["order"] for entry in document["orders"]] == [2, 3]
    keys = [(e["layer"], e["order"], e["head"]) for e in document["columns"]]
    assert keys == [(layer, order, head) for layer in (1, 7) for order in (2, 3) for head in (0, 1)]
    assert "seconds" not in json.dumps(document)


def test_sections_stand_beside_the_figures(tmp_path: Path) -> None:
    sections = {"growth": [{"order": 2, "tokens": [1, 2]}]}
    write(counted(), tmp_path / "stats", sections=sections)
    assert read_stats(tmp_path / "stats").document["growth"] == sections["growth"]
    with pytest.raises(ValueError, match="tokens"):
        write(counted(), tmp_path / "other", sections={"tokens": 3})
    assert not (tmp_path / "other").exists()


def test_an_unknown_layer(stats: Path) -> None:
    with pytest.raises(LayoutError, match="no layer 2"):
        read_stats(stats).hits(2)


def test_what_stands_there_is_kept_unless_forced(stats: Path) -> None:
    before = bytes_of(stats)
    with pytest.raises(OutputError, match="already exists"):
        write(counted(), stats)
    assert bytes_of(stats) == before
    write(counted(), stats, force=True)
    assert bytes_of(stats) != before
    assert os.listdir(stats.parent) == ["stats"]


def test_nothing_is_left_of_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stats_io, "write_samples", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(counted(), tmp_path / "stats")
    assert os.listdir(tmp_path) == []


def test_no_folder_and_no_end(tmp_path: Path, stats: Path) -> None:
    with pytest.raises(InputError, match="no statistics folder"):
        read_stats(tmp_path / "missing")
    (stats / "stats.json").unlink()
    with pytest.raises(IncompleteError, match="never finished"):
        read_stats(stats)


def add(entry: str) -> Callable[[Path], None]:
    """Further JSON in the document, whose digest stays."""

    def change(path: Path) -> None:
        said = (path / "stats.json").read_text()
        (path / "stats.json").write_text("{" + entry + "," + said[1:])

    return change


def edit(key: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        document = json.loads((path / "stats.json").read_bytes())
        document[key] = value
        del document["digest"]  # as earlier versions wrote it; what else is wrong is to be seen
        (path / "stats.json").write_text(json.dumps(document))

    return change


def replace_array(**options: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        shutil.rmtree(path / "counters.zarr" / "1")
        group = zarr.open_group(path / "counters.zarr")
        group.create_array("1", **options)

    return change


def remove(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def overwrite(name: str, raw: bytes) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(raw) and None


def edit_sample(
    column: str, change_values: Callable[[list[Any]], list[Any]]
) -> Callable[..., None]:
    def change(path: Path) -> None:
        table = pq.read_table(path / "sample.parquet")
        values = pa.array(change_values(table[column].to_pylist()), table[column].type)
        index = table.column_names.index(column)
        pq.write_table(table.set_column(index, column, values), path / "sample.parquet")

    return change


ROWS = sum((101, 103, 10007, 10009)) + 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit("format", "other"), "is not a stats.json of engram"),
        (edit("version", 2), "written by a newer version"),
        (edit("complete", False), "not complete"),
        (edit("tokens", -1), "'tokens' is missing or wrong"),
        (edit("tokens", "5"), "'tokens' is missing or wrong"),
        (edit("tokens", 7), "sum to"),
        (edit("layout", {}), "not a hash layout"),
        (edit("fingerprint", "sha256:0"), "fingerprint"),
        (edit("samples", []), "sample"),
        (edit("samples", [{"order": 2, "size": 50, "threshold": "x"}] * 2), "sample"),
        (add('"x": "\\ud800"'), "half a surrogate pair"),
        (add('"x": ' + "[" * 900 + "]" * 900), "nested more than 64 deep"),
        (overwrite("stats.json", b"{"), "not JSON"),
        (overwrite("stats.json", b"[1]"), "no JSON object"),
        (overwrite("counters.zarr/1/zarr.json", b"{"), "cannot be read"),
        (overwrite("counters.zarr/1/c/0", b"garbage"), "cannot be read"),
        (overwrite("sample.parquet", b"garbage"), "cannot be read as a sample"),
        (remove("counters.zarr/1/c/0"), "sum to 0"),
        (remove("counters.zarr/1"), "cannot be read"),
        (remove("sample.parquet"), "cannot be read as a sample"),
        (replace_array(shape=(ROWS,), dtype="uint16", chunks=(ROWS,)), "is uint16"),
        (replace_array(shape=(ROWS + 1,), dtype="uint32", chunks=(ROWS,)), "of shape"),
        (replace_array(shape=(ROWS, 1), dtype="uint32", chunks=(ROWS, 1)), "of shape"),
        (
            replace_array(
                shape=(ROWS,),
                dtype="uint32",
                chunks=(ROWS,),
                compressors=zarr.codecs.GzipCodec(),
            ),
            "is stored with",
        ),
        (edit_sample("count", lambda counts: [10**9, *counts[1:]]), "was changed"),
        (edit_sample("hash", lambda hashes: hashes[::-1]), "was changed"),
        (edit_sample("compressed_ids", lambda t: [[1, 1], *t[1:]]), "was changed"),
        (edit_sample("compressed_ids", lambda t: [[1, 2, 3], *t[1:]]), "a sample was changed"),
        (edit_sample("compressed_ids", lambda t: [[1, 99], *t[1:]]), "was changed"),
        (edit_sample("order", lambda orders: [2] * len(orders)), "sample"),
    ],
)
def test_damage_is_told(damage: Callable[[Path], None], message: str, stats: Path) -> None:
    damage(stats)
    with pytest.raises((ArtifactError, IncompleteError), match=message):
        read_stats(stats).counts()


def test_damaged_maps_are_told(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=101, heads=2, layers=(1,))
    write(count(DOCUMENTS, layout), tmp_path / "stats")
    array = zarr.open_array(tmp_path / "stats" / "counters.zarr" / "lookup", mode="r+")
    array[3] = 0
    with pytest.raises(EngramError, match="lookup is damaged"):
        read_stats(tmp_path / "stats")


def test_results_that_fail_leave_nothing(tmp_path: Path) -> None:
    def fails() -> Mapping[str, object]:
        raise ArtifactError("the vocabulary is damaged", "make it again")

    counts = counted()
    with pytest.raises(ArtifactError, match="the vocabulary is damaged"):
        write_stats(counts, fails, tmp_path / "stats")
    results = {"orders": orders_of(counts), "columns": columns_of(counts)}
    with pytest.raises(ArtifactError, match="the vocabulary is damaged"):
        write_stats(counts, lambda: results, tmp_path / "stats", texts=fails)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_full_counters_are_read_back(tmp_path: Path) -> None:
    counts = counted()
    fields = {name: getattr(counts, name) for name in counts.__slots__}
    hits = {layer: own.copy() for layer, own in counts.hits.items()}
    for entry in LAYOUT.layers:
        hits[entry.layer][list(entry.offsets)] = FULL
    full = Counts(**fields | {"hits": hits, "tokens": 2**33})
    columns = columns_of(full)
    results = {"orders": orders_of(full), "columns": columns}
    assert [column.full_rows for column in columns] == [1] * 8
    write_stats(full, lambda: results, tmp_path / "stats")
    assert np.array_equal(read_stats(tmp_path / "stats").hits(1), hits[1])
    hits[7][LAYOUT.layers[1].offsets[2]] = 5  # a column whose hits do not reach the tokens
    write_stats(full, lambda: results, tmp_path / "stats", force=True)
    with pytest.raises(ArtifactError, match="layer 7, column 2 sum to"):
        read_stats(tmp_path / "stats").hits(7)


def test_counters_open_in_xarray(stats: Path) -> None:
    """The hits of a layer by its rows, and the vocabulary map by token ids."""
    xarray = pytest.importorskip("xarray")
    found = xarray.open_zarr(stats / "counters.zarr", consolidated=False, chunks=None)
    statistics = read_stats(stats)
    for layer in statistics.layout.layer_ids:
        assert found[str(layer)].dims == (f"row_{layer}",)
        assert (found[str(layer)].values == statistics.hits(layer)).all()
        assert found[str(layer)].attrs["long_name"] == f"look-ups of each row of layer {layer}"


def test_arrays_are_as_zarr_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written without zarr has the metadata and the entries that zarr gives it."""
    monkeypatch.setattr(arrays, "_CHUNK", 100)
    counts = np.zeros(250, dtype=np.uint32)
    counts[230] = 7  # the first two chunks are zeros, and have no file
    lookup = np.arange(30, dtype=np.int32) - 1
    written = {"12": counts, "lookup": lookup}
    digests = arrays.write_arrays(tmp_path / "own", written, {"12": "row_12"}, {"12": "look-ups"})
    group = zarr.create_group(tmp_path / "zarr", zarr_format=3)
    own = zarr.open_group(tmp_path / "own", mode="r")
    assert own.metadata == group.metadata
    for name, values in written.items():
        made = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(min(100, len(values)),),
            compressors=zarr.codecs.ZstdCodec(level=1),
            fill_value=0,
            dimension_names=("row_12" if name == "12" else name,),
            attributes={"long_name": "look-ups"} if name == "12" else {},
        )
        read = own[name]
        assert isinstance(read, zarr.Array)
        assert read.metadata == made.metadata
        assert np.array_equal(np.asarray(read[:]), values)
        assert np.array_equal(
            arrays.read_array(tmp_path / "own", name, values.shape, values.dtype), values
        )
        assert digests[name] == arrays.array_digest(values)
    assert os.listdir(tmp_path / "own" / "12" / "c") == ["2"]
