"""Compiled kernels are kept; a cache that is full, damaged or of older sources stops no work."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from numba import config
from numba.core.caching import IndexDataCacheFile

from engram_cli import kernel_cache
from engram_cli.kernel_cache import KernelCache

SOURCE = """
from engram_cli import jit

@jit.kernel("int64(int64)")
def times(value):
    return {factor} * value
"""


@pytest.fixture
def times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make a new kernel, as another process would: times(7) multiplies by 7."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(KernelCache, "_said", False)
    file = tmp_path / "factors.py"

    def make(factor: int) -> Any:
        file.write_text(SOURCE.format(factor=factor))
        os.utime(file, (factor, factor))  # Numba looks at the time and the size
        spec = importlib.util.spec_from_file_location("factors", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.times

    return make


def hits(kernel: Any) -> int:
    """How many times the compiled code came from the disk."""
    return int(sum(kernel.stats.cache_hits.values()))


@contextmanager
def failing_from(write: int, number: int) -> Iterator[None]:
    """Let the disk become full with the write of this index, counted from 0."""
    opened, count = IndexDataCacheFile._open_for_write, 0

    @contextmanager
    def full(self: Any, path: str) -> Iterator[Any]:
        nonlocal count
        count += 1
        with opened(self, path) as file:
            if count > write:
                file.write(b"part")
                raise OSError(number, os.strerror(number))
            yield file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IndexDataCacheFile, "_open_for_write", full)
        yield


def test_kernels_are_kept(times: Callable[..., Any]) -> None:
    first, second = times(3), times(3)
    assert (first(5), hits(first)) == (15, 0)
    assert (second(5), hits(second)) == (15, 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("write", [0, 1])
def test_a_full_disk_is_said_once(
    times: Callable[..., Any], write: int, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    with failing_from(write, number), caplog.at_level(logging.WARNING):
        assert (times(3)(5), times(4)(5)) == (15, 20)
    [record] = caplog.records
    assert f"cannot be written ({os.strerror(number)}) - free some space" in record.getMessage()
    later, last = times(4), times(4)
    assert (later(5), hits(later)) == (20, 0)
    assert (last(5), hits(last)) == (20, 1)


def test_what_an_older_source_left_is_not_loaded(times: Callable[..., Any]) -> None:
    """The index is written first: where the disk is full then, it names the data of before."""
    assert times(3)(5) == 15
    with failing_from(1, errno.ENOSPC):
        assert times(4)(5) == 20
    later = times(4)
    assert (later(5), hits(later)) == (20, 0)


def test_another_version_of_the_package_is_not_loaded(
    times: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert times(3)(5) == 15
    monkeypatch.setattr(kernel_cache, "__version__", "9.9")
    second, third = times(3), times(3)
    assert (second(5), hits(second)) == (15, 0)
    assert (third(5), hits(third)) == (15, 1)


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"\0" * 500, None], ids=["empty", "zeros", "half"])
def test_damaged_files_are_made_again(
    times: Callable[..., Any], tmp_path: Path, suffix: str, damage: bytes | None
) -> None:
    assert times(3)(5) == 15
    [file] = (tmp_path / "cache").rglob(f"*.{suffix}")
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2] if damage is None else damage)
    second, third = times(3), times(3)
    assert (second(5), hits(second)) == (15, 0)
    assert (third(5), hits(third)) == (15, 1)


def test_a_damaged_index_that_cannot_be_replaced(
    times: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert times(3)(5) == 15
    [index] = (tmp_path / "cache").rglob("*.nbi")
    index.write_bytes(b"")
    with failing_from(0, errno.ENOSPC), caplog.at_level(logging.WARNING):
        assert times(3)(5) == 15
    assert len(caplog.records) == 1


def test_a_kernel_that_calls_a_changed_one_of_another_file_is_made_again(
    times: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = tmp_path / "caller.py"
    caller.write_text(
        'from engram_cli import jit\n\n@jit.kernel("int64(int64)")\n'
        "def next_of(value):\n    return times(value) + 1\n"
    )

    def made(factor: int) -> Any:
        called = times(factor)
        spec = importlib.util.spec_from_file_location("caller", caller)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setattr(module, "times", called, raising=False)
        spec.loader.exec_module(module)
        return module.next_of

    for factor, kept in ((3, 0), (3, 1), (4, 0)):
        own = made(factor)
        assert (own(5), hits(own)) == (5 * factor + 1, kept)
