"""Kernels are compiled when they are called, once, also by several threads and by other kernels."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from engram_cli import jit


@jit.kernel("int64(int64)", cache=False)
def doubled(value: Any) -> Any:
    """Return twice a value."""
    return 2 * value


@jit.kernel("void(int64[::1], int64[::1])", cache=False)
def double_all(values: Any, out: Any) -> None:
    """Double an array."""
    for i in range(values.size):
        out[i] = doubled(values[i])


def test_a_kernel_calls_another_that_was_never_called() -> None:
    assert doubled._made is None
    out = np.zeros(3, dtype=np.int64)
    double_all(np.arange(3), out)
    assert out.tolist() == [0, 2, 4]
    assert doubled(5) == 10
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Return twice a value.")
    assert len(double_all.signatures) == 1
    with pytest.raises(TypeError, match="No matching definition"):
        double_all(np.arange(3.0), out)


def test_threads_compile_a_kernel_once() -> None:
    made = []

    def make() -> Any:
        made.append(1)
        return lambda value: value

    kernel = jit.Kernel(lambda value: value, make)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(kernel, range(8))) == list(range(8))
    assert made == [1]


def test_importing_kernels_compiles_none() -> None:
    code = """
from engram_cli.hashing import kernels
from engram_cli.jit import Kernel
found = [each for each in vars(kernels).values() if isinstance(each, Kernel)]
print(len(found) > 5, any(each._made for each in found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
