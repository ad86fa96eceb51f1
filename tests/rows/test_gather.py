"""Rows gathered at random: the kernel equals its twin, and cold rows are read as warm ones are."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table import plain
from table.tables import build

from engram_cli.errors import ArtifactError
from engram_cli.rows import kernels
from engram_cli.rows.gather import FileArray
from engram_cli.rows.source import Span
from engram_cli.table.store import TableStore, open_array, open_table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TableStore:
    out = tmp_path_factory.mktemp("gather") / "t.zarr"
    build(out, dim=320, dtype="fp8_e8m0", chunk_rows=50)
    return open_table(out)


def whole(table: TableStore) -> np.ndarray:
    return np.concatenate([rows for _, rows in table.chunks(3)])


def drop(table: TableStore) -> None:
    """Take the chunks out of the page cache; only pages that nothing maps go."""
    for file in table.path.rglob("c.*"):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 300)),
    count=st.integers(0, 2500),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_the_kernel_equals_its_twin(sizes: tuple[int, int, int], count: int, seed: int) -> None:
    chunks, chunk_rows, row_bytes = sizes
    generator = np.random.default_rng(seed)
    memory = generator.integers(0, 256, (chunks, chunk_rows * row_bytes), dtype=np.uint8)
    order = generator.permutation(chunks)
    bases = np.array([memory[i].ctypes.data for i in order], dtype=np.uint64)
    rows = generator.integers(0, chunks * chunk_rows, count)
    found, twin = (np.zeros(count * row_bytes, np.uint8) for _ in range(2))
    kernels.take_rows(bases, rows, chunk_rows, row_bytes, found)
    plain.take_rows(bases, rows, chunk_rows, row_bytes, twin)
    np.testing.assert_array_equal(found, twin)
    expected = memory[order].reshape(-1, row_bytes)[rows]
    np.testing.assert_array_equal(found.reshape(-1, row_bytes), expected)


@pytest.mark.parametrize("count", [0, 1, 3, 5000])
@pytest.mark.parametrize("cold", [False, True])
def test_warm_and_cold_rows_are_the_same(
    table: TableStore, count: int, cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileArray, "_in_memory", lambda self, rows: not cold)
    fresh = open_table(table.path)
    rows = np.random.default_rng(count).integers(0, 212, count)
    stored, scales = fresh.stored(3, rows)
    np.testing.assert_array_equal(stored, whole(table)[rows])
    assert scales.shape == (count, 10)
    everything = np.concatenate([values for _, values in table.values(3)])
    np.testing.assert_array_equal(fresh.rows(3, rows), everything[rows])


def test_what_is_not_in_memory_is_noticed_and_asked_for(
    table: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = table.arrays["3"]
    rows = np.arange(0, 212, 13)
    asked: list[int] = []
    ask = FileArray._ask_for
    monkeypatch.setattr(FileArray, "_ask_for", lambda self, r: (asked.append(len(r)), ask(self, r)))
    list(table.values(3))
    warm = open_array(table.path, array)
    warm.take(rows)
    assert not asked
    del warm
    drop(table)
    cold = open_array(table.path, array)
    cold._map_spans(rows)
    if cold._in_memory(rows):
        pytest.skip("this file system keeps its pages in memory")
    np.testing.assert_array_equal(cold.take(rows), whole(table)[rows])
    assert sum(asked) == len(rows)
    assert cold._in_memory(rows)


def test_threads_may_gather_from_one_table(table: TableStore) -> None:
    fresh = open_table(table.path)
    rows = np.random.default_rng(1).integers(0, 212, (16, 300))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda r: fresh.stored(3, r)[0], rows))
    np.testing.assert_array_equal(found, whole(table)[rows])


def test_only_chunks_with_wanted_rows_are_mapped(table: TableStore) -> None:
    gatherer = open_array(table.path, table.arrays["3"])
    gatherer.take(np.array([60, 210, 99]))
    assert (gatherer._bases != 0).tolist() == [False, True, False, False, True]


def test_a_chunk_that_went_away_is_one_line(tmp_path: Path) -> None:
    build(tmp_path / "t.zarr")
    table = open_table(tmp_path / "t.zarr")
    (table.path / "3" / "c.2.0").unlink()
    table.rows(3, [0])
    with pytest.raises(ArtifactError, match=r"c\.2\.0 cannot be mapped"):
        table.rows(3, [70])


@given(
    heights=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    gap=st.sampled_from([0, 3, 264]),
    skipped=st.integers(0, 5000),
    width=st.integers(1, 5),
    cold=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_spans_of_any_height_begin_and_stride_hold_one_array(
    heights: list[int], gap: int, skipped: int, width: int, cold: bool, data: st.DataObject
) -> None:
    generator = np.random.default_rng(len(heights) * 100 + gap)
    whole = generator.integers(0, 2**16, (sum(heights), width), dtype=np.uint16)
    row_bytes = 2 * width
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        spans, first = [], 0
        for index, height in enumerate(heights):
            file = Path(folder) / f"{index}"
            lines = np.full((height, row_bytes + gap), 255, dtype=np.uint8)
            lines[:, :row_bytes] = whole[first : first + height].view(np.uint8)
            raw = lines.tobytes()
            file.write_bytes(b"x" * skipped + (raw[:-gap] if gap else raw))
            stride = row_bytes + gap if gap else 0
            spans.append(Span(file=file, begin=skipped, first=first, rows=height, stride=stride))
            first += height
        array = FileArray(spans, whole.dtype, (width,))
        ids = data.draw(st.lists(st.integers(0, first - 1), max_size=40))
        begin = data.draw(st.integers(0, first))
        count = data.draw(st.integers(0, first - begin))
        patch.setattr(FileArray, "_in_memory", lambda self, rows: not cold)
        np.testing.assert_array_equal(array.take(np.array(ids, dtype=np.int64)), whole[ids])
        np.testing.assert_array_equal(array.read(begin, count), whole[begin : begin + count])
        np.testing.assert_array_equal(np.concatenate([c for _, c in array.chunks()]), whole)
        assert [at for at, _ in array.chunks()] == [span.first for span in spans]
