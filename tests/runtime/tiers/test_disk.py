"""Rows read from files: equal to the twin's, within their memory, and errors that name the row."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime.tiers.cases import random_bundle, records_of
from tiny_models import make_layout, make_spec
from torch import Tensor

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.bundle import Bundle, read_bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES
from engram_cli.formats.bundle_writer import write_referring
from engram_cli.formats.module_spec import first_values
from engram_cli.formats.table_reference import refer
from engram_cli.rows import DTYPES
from engram_cli.runtime.tiers import disk
from engram_cli.runtime.tiers.disk import SCRATCH_BYTES, DiskRows, RowFiles
from engram_cli.runtime.tiers.records import RecordSource, record_layout
from engram_cli.runtime.tiers.row_cache import slot_bytes
from engram_cli.table.attributes import read_description
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Bundle:
    """Layers of about 400 fp8 rows, 256 + 8 bytes each, in four shards."""
    path = tmp_path_factory.mktemp("disk") / "engram"
    return random_bundle(path, small_vocab, "fp8_e8m0", dim=256, shard_rows=110)


def gather(source: RecordSource, rows: Tensor) -> Tensor:
    out = torch.zeros(len(rows), source.record_bytes, dtype=torch.uint8)
    source.gather(rows, out)
    return out


def meaningful(bundle: Bundle, records: Tensor) -> Tensor:
    """The bytes of records that are not padding."""
    layout = record_layout(bundle.spec)
    return torch.cat([layout.part(records, ROWS), layout.part(records, SCALES)], dim=1)


def check(source: RecordSource, bundle: Bundle, layer: int, rows: Tensor) -> None:
    found, expected = (
        meaningful(bundle, records)
        for records in (gather(source, rows), records_of(bundle, layer, rows))
    )
    assert torch.equal(found, expected)


def requests(height: int) -> dict[str, Tensor]:
    """Row numbers as they may come."""
    generator = torch.Generator().manual_seed(0)
    every = torch.randperm(height, generator=generator)
    return {
        "nothing": every[:0],
        "one": every[:1],
        "a few": every[:20],
        "many, no order": every[:300],
        "ends": torch.tensor([height - 1, 0]),
        "every one": torch.arange(height),
        "every third, descending": torch.arange(height - 1, -1, -3),
        "repeated": every[:90].repeat(3),
    }


@pytest.mark.parametrize("cache", ["none", "smaller than a request", "all"])
@pytest.mark.parametrize("dim", [33, 256])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_records_are_the_twins(
    tmp_path: Path, small_vocab: CompressedVocab, dtype: str, dim: int, cache: str
) -> None:
    bundle = random_bundle(tmp_path / "b", small_vocab, dtype, dim=dim, shard_rows=110)
    layer = bundle.spec.layers[1]
    height, size = bundle.spec.rows(layer), slot_bytes(record_layout(bundle.spec).record_bytes)
    sizes = {"none": 0, "smaller than a request": 64 * size, "all": 4 * height * size}
    source = DiskRows(bundle, layer, cache_bytes=sizes[cache])
    assert (source.rows, source.record_bytes) == (height, record_layout(bundle.spec).record_bytes)
    for _ in range(2):  # the second time partly from the cache
        for rows in requests(height).values():
            check(source, bundle, layer, rows)
    counted = source.counters()
    wanted = 2 * sum(map(len, requests(height).values()))
    assert (counted["rows"], counted["bytes"]) == (wanted, wanted * source.record_bytes)
    assert (counted["hits"] > 0) == (cache != "none")
    assert counted["seconds"] > 0
    source.close()


@pytest.mark.parametrize("part_rows", [1, 7, 50])
def test_requests_larger_than_a_piece(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    monkeypatch.setattr(disk, "_PIECE_ROWS", part_rows)
    monkeypatch.setattr(disk, "_ALONE", 3)
    monkeypatch.setattr(disk, "WINDOW", 4)
    monkeypatch.setattr(disk, "RUN_ROWS", 5)
    source = DiskRows(bundle, 1, cache_bytes=50_000)
    for rows in requests(source.rows).values():
        check(source, bundle, 1, rows)
    source.close()


def test_scales_are_held_where_they_fit(bundle: Bundle) -> None:
    height = bundle.spec.rows(1)
    held, read = (DiskRows(bundle, 1, cache_bytes=size) for size in (8 * height * 2, 8 * height))
    rows = torch.arange(0, height, 40)
    for source in (held, read):
        check(source, bundle, 1, rows)
    assert held.held_bytes <= 8 * height * 2
    assert read.held_bytes <= 8 * height
    assert held.counters()["reads"] == len(rows)
    # Scales of all rows lie on one page; each is read with those between it and the next.
    assert read.counters()["reads"] > len(rows)
    held.close()
    read.close()


def test_neighbours_are_one_read(bundle: Bundle) -> None:
    source = DiskRows(bundle, 1, cache_bytes=0)
    layout = record_layout(bundle.spec)
    files = RowFiles(bundle.spans(1, ROWS), layout.row_bytes, 1)
    target = memoryview(bytearray(20 * layout.record_bytes))

    def reads(rows: list[int]) -> int:
        lines = np.arange(len(rows))
        return files.read(np.array(rows), lines, layout.record_bytes, target)

    gap = disk.GAP_BYTES // layout.row_bytes
    assert reads([3, 4, 5]) == 1
    assert reads([3, 4 + gap]) == 1
    assert reads([3, 5 + gap]) == 2
    first = bundle.spans(1, ROWS)[1].first
    assert reads([first - 1, first]) == 2, "in two files"
    files.close()
    source.close()


def test_several_threads_at_once(bundle: Bundle) -> None:
    source = DiskRows(bundle, 1, cache_bytes=30_000)

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(15):
            count = int(torch.randint(1, 300, (1,), generator=generator))
            check(source, bundle, 1, torch.randperm(source.rows, generator=generator)[:count])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    source.close()


def test_what_does_not_fit_is_refused(bundle: Bundle) -> None:
    source = DiskRows(bundle, 1, cache_bytes=0)
    size, height = source.record_bytes, source.rows
    out = torch.zeros(2, size, dtype=torch.uint8)
    good = torch.tensor([1, 2])
    cases: list[Any] = [
        (torch.tensor([1, height]), out, rf"outside 0\.\.{height - 1}"),
        (torch.tensor([-1, 2]), out, "row -1"),
        (good.int(), out, "give rows int64"),
        (good.view(1, 2), out, "give rows int64"),
        (good, out[:1], "give rows int64"),
        (good, out.to(torch.int8), "give rows int64"),
        (good, torch.zeros(2, 2 * size, dtype=torch.uint8)[:, ::2], "lie apart"),
    ]
    for rows, into, message in cases:
        with pytest.raises(InputError, match=message):
            source.gather(rows, into)
    check(source, bundle, 1, good)
    source.close()


@pytest.fixture
def own(tmp_path: Path, small_vocab: CompressedVocab) -> Bundle:
    """A bundle that a test may damage."""
    return random_bundle(tmp_path / "own", small_vocab, "fp8_e8m0", dim=256, shard_rows=110)


@pytest.mark.parametrize("many", [False, True])
def test_a_file_that_was_cut_names_the_row(own: Bundle, many: bool) -> None:
    source = DiskRows(own, 1, cache_bytes=0)
    place = own.spans(1, ROWS)[1]
    before = torch.tensor([place.first + 19])
    expected = records_of(own, 1, before)
    os.truncate(place.file, place.begin + 20 * 256 + 255)
    row = place.first + 20
    rows = torch.arange(source.rows) if many else torch.tensor([row])
    with pytest.raises(ArtifactError, match=rf"{place.file}: row {row} of layer 1 .* ends before"):
        gather(source, rows)
    assert torch.equal(gather(source, before), expected)
    source.close()


def test_a_file_that_is_gone(own: Bundle) -> None:
    source = DiskRows(own, 1, cache_bytes=0)
    path = own.spans(1, ROWS)[0].file
    path.unlink()
    with pytest.raises(ArtifactError, match=f"cannot open {path}: No such file"):
        gather(source, torch.tensor([0]))
    source.close()


def test_an_error_of_the_disk_names_the_row(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    source = DiskRows(own, 1, cache_bytes=0)
    bad = own.spans(1, ROWS)[0].begin + 7 * 256
    read = os.preadv

    def failing(descriptor: int, buffers: Any, offset: int) -> int:
        if offset <= bad < offset + sum(map(len, buffers)):
            raise OSError(5, "Input/output error")
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(ArtifactError, match=r"row 7 of layer 1 .*: Input/output error"):
        gather(source, torch.arange(100))
    source.close()


def test_reads_that_come_in_parts(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.preadv

    def part(descriptor: int, buffers: Any, offset: int) -> int:
        return read(descriptor, [buffers[0][:100]], offset)

    monkeypatch.setattr(os, "preadv", part)
    source = DiskRows(bundle, 1, cache_bytes=0)
    check(source, bundle, 1, torch.arange(0, 300, 7))
    source.close()


def test_more_files_than_are_kept_open(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "KEPT_OPEN", 0)
    source = DiskRows(bundle, 1, cache_bytes=0)
    before = len(os.listdir("/proc/self/fd"))
    for rows in requests(source.rows).values():
        check(source, bundle, 1, rows)
    assert len(os.listdir("/proc/self/fd")) == before
    source.close()


def test_files_and_threads_are_let_go(bundle: Bundle) -> None:
    gc.collect()  # what earlier tests left behind
    before = len(os.listdir("/proc/self/fd"))
    source = DiskRows(bundle, 1, cache_bytes=10_000)
    check(source, bundle, 1, torch.arange(source.rows))
    assert len(os.listdir("/proc/self/fd")) > before
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not any("engram-disk" in thread.name for thread in threading.enumerate())
    forgotten = DiskRows(bundle, 1, cache_bytes=10_000)
    check(forgotten, bundle, 1, torch.arange(10))
    del forgotten
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_stays_within_what_is_stated(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    bundle = random_bundle(tmp_path / "b", small_vocab, "float32", dim=2048)
    torch.ones(1).numpy()
    rows = torch.arange(bundle.spec.rows(1))
    out = torch.zeros(len(rows), 8192, dtype=torch.uint8)
    size = 10**6
    tracemalloc.start()
    source = DiskRows(bundle, 1, cache_bytes=size)
    for _ in range(3):
        source.gather(rows, out)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.held_bytes <= size
    assert held <= size + 200_000
    assert peak <= size + SCRATCH_BYTES
    source.close()


@pytest.mark.parametrize("dtype", ["int4_b32", "fp8", "bfloat16"])
def test_a_table_that_is_referred_to(
    small_vocab: CompressedVocab, tmp_path: Path, dtype: str
) -> None:
    layout = make_layout(small_vocab)
    init = make_init("normal", seed=0, std=0.5)
    table = TableSpec(layout=layout, dim=33, dtype=dtype, init=init, chunk_rows=100)
    build_store(table, tmp_path / "t.zarr")
    store, spec = open_table(tmp_path / "t.zarr"), make_spec(layout, dtype, dim=33)

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    files = read_description(store.path).files
    reference = refer(store.path, store.digest, files, spec, tmp_path / "refers")
    write_referring(tmp_path / "refers", spec, store.chunks, dense, reference, tool_version="0")
    bundle = read_bundle(tmp_path / "refers")
    source = DiskRows(bundle, 2, cache_bytes=5_000)
    for rows in requests(source.rows).values():
        check(source, bundle, 2, rows)
    source.close()
    if dtype == "int4_b32":
        (cut, *_) = bundle.spans(2, SCALES)
        os.truncate(cut.file, 5)
        with pytest.raises(ArtifactError, match=f"{cut.file} ends in the middle of its scales"):
            DiskRows(bundle, 2, cache_bytes=5_000)
        cut.file.unlink()
        with pytest.raises(ArtifactError, match=f"cannot read {cut.file}: No such file"):
            DiskRows(bundle, 2, cache_bytes=5_000)
