"""The first tokens of a process are hashed by NumPy, which equals the kernels to the bit."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from hashing.layouts import layouts, streams
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_cli.hashing import few, hasher, kernels
from engram_cli.hashing.hasher import StreamHasher


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_numpy_equals_the_kernels(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    stream = data.draw(streams(layout))
    again = data.draw(streams(layout))
    found = []
    for module in (few, kernels):
        with mock.patch.object(hasher, "kernels_for", lambda count, module=module: module):
            own = StreamHasher(layout)
            for part in (stream, again):  # the second sees the end of the first
                window = own.push(part["ids"], dead=part["dead"], starts=part["starts"])
                rows = np.empty((len(window), layout.columns), dtype=np.int64)
                own.rows(window, layout.layers[0].layer, rows)
                found.append((window.tokens, window.seen, rows))
    for numpy_gave, kernels_gave in zip(found[:2], found[2:], strict=True):
        for one, other in zip(numpy_gave, kernels_gave, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "int64"])
@pytest.mark.parametrize("bad", [None, 200, -1, 7])
def test_ids_are_checked_as_the_kernel_checks_them(dtype: str, bad: int | None) -> None:
    lookup = np.arange(100, dtype=np.int32)
    lookup[7] = -1  # a hole
    ids = np.array([5, 17, 99, 0, 3])
    if bad is not None:
        ids[2:4] = bad
    given_ids = ids.astype(dtype)
    one, other = np.empty(5, dtype=np.int32), np.empty(5, dtype=np.int32)
    at = few.compress(given_ids, lookup, one)
    assert at == kernels.compress(given_ids, lookup, other)
    assert at == (-1 if bad is None else 2)
    if bad is None:
        np.testing.assert_array_equal(one, other)


def test_after_a_few_tokens_the_kernels_are_loaded() -> None:
    code = f"""
import sys
import numpy as np
from engram_cli import hash_layout, hash_tokens
layout = hash_layout("qwen-ple", vocab_size=1000, eos_id=1)
ids = np.arange({few.FEW} // 8) % 1000  # each counts twice: compressed, and hashed
for expected in [False] * 4 + [True]:
    rows = hash_tokens(layout, ids, layer=layout.layer_ids[0])
    assert ("numba" in sys.modules) == expected
    first = rows if not expected else first
np.testing.assert_array_equal(rows, first)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_bad_id_is_named_by_either() -> None:
    code = """
import sys
from engram_cli import hash_layout, hash_tokens
from engram_cli.errors import TokenIdError
layout = hash_layout("qwen-ple", vocab_size=10, eos_id=1)
try:
    hash_tokens(layout, [3, 10], layer=layout.layer_ids[0])
except TokenIdError as error:
    print(error.message, "numba" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = "token id 10 is beyond the vocabulary of 10, at position 1 False\n"
    assert done.stdout == said
