"""The checksum is XXH64, however its bytes are cut."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_cli.rows.checksum import PRIME_1, PRIME_2, Checksum, _fold_stripes, file_checksum

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


def folded(words: list[int], lanes: list[int]) -> list[int]:
    """The loop over stripes in Python."""
    mask = 2**64 - 1
    for begin in range(0, len(words), 4):
        for lane, word in enumerate(words[begin : begin + 4]):
            value = lanes[lane] + word * PRIME_2 & mask
            lanes[lane] = (value << 31 | value >> 33) * PRIME_1 & mask
    return lanes


@given(count=st.integers(1, 40), seed=st.integers(0, 2**32), offset=st.integers(0, 7))
@settings(max_examples=50, deadline=None)
def test_the_compiled_loop_is_the_one_in_python(count: int, seed: int, offset: int) -> None:
    random = np.random.default_rng(seed)
    lanes = random.integers(0, 2**64, 4, dtype=np.uint64)
    raw = random.integers(0, 256, 32 * count + 8, dtype=np.uint8)[offset:]
    words = np.frombuffer(raw[: 32 * count].tobytes(), "<u8").tolist()
    expected = folded(words, lanes.tolist())
    _fold_stripes()(raw.ctypes.data, 4 * count, lanes.ctypes.data)
    assert lanes.tolist() == expected


def test_numba_compiles_after_the_loop_was_compiled() -> None:
    code = (
        "import sys, numpy as np; from engram_cli.rows.checksum import Checksum\n"
        "one = Checksum(); one.update(np.zeros(64, np.uint8)); print('numba' in sys.modules)\n"
        "from engram_cli.rows import kernels; out = np.empty((1, 4)); row = np.ones((1, 3), 'f4')\n"
        "kernels.row_products(row, row, out); print(out[0, 0], one.hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "3.0", checksum(bytes(64))]


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
