"""The checksum is XXH64, however its bytes are cut."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_cli.rows.checksum import Checksum, file_checksum

# Published test values of the algorithm, seed 0.
VECTORS = {
    b"": "ef46db3751d8e999",
    b"a": "d24ec4f1a98c6e5b",
    b"abc": "44bc2cf5ad770999",
    b"Nobody inspects the spammish repetition": "fbcea83c8a378bf1",
}


def checksum(*parts: bytes) -> str:
    running = Checksum()
    for part in parts:
        running.update(np.frombuffer(part, dtype=np.uint8))
    return running.hexdigest()


@pytest.mark.parametrize(("data", "expected"), VECTORS.items())
def test_published_values(data: bytes, expected: str) -> None:
    assert checksum(data) == expected


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=6))
@settings(max_examples=100, deadline=None)
def test_cuts_change_nothing(data: bytes, cuts: list[int]) -> None:
    bounds = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    parts = [data[begin:end] for begin, end in pairwise(bounds)]
    assert checksum(*parts) == checksum(data)


@given(data=st.binary(min_size=1, max_size=200), bit=st.integers(0))
@settings(max_examples=100, deadline=None)
def test_one_flipped_bit_is_seen(data: bytes, bit: int) -> None:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    assert checksum(bytes(changed)) != checksum(data)


@pytest.mark.parametrize("count", [0, 31, 2**20, 2**20 + 5])
def test_zeros_and_files(tmp_path: Path, count: int) -> None:
    expected = checksum(b"\x01", bytes(count))
    running = Checksum()
    running.update(np.ones(1, np.uint8))
    running.update_zeros(count)
    assert running.hexdigest() == expected
    (tmp_path / "file").write_bytes(b"\x01" + bytes(count))
    assert file_checksum(tmp_path / "file") == expected
