"""Other systems than Linux: macOS lacks some calls, and Windows is refused in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import engram_cli
from engram_cli.files import preadv
from engram_cli.runtime.tiers import free_memory

_CALLS = re.compile(r"\b(os\.(preadv|sysconf|posix_|sched_|copy_)|mmap\.MADV|fcntl\b)|\"preadv\"")
# Takes from Python what macOS lacks, when the libraries are loaded and before the package is.
_MACOS = """
import importlib, mmap, os, sys, sysconfig
import numba, pyarrow.parquet, tokenizers

sysconfig.get_config_vars()  # by the true platform
for name in (
    "preadv", "pwritev", "posix_fadvise", "posix_fallocate", "sched_getaffinity",
    "copy_file_range", "memfd_create", "eventfd", "splice", "O_DIRECT",
):
    if hasattr(os, name):
        delattr(os, name)
del mmap.MADV_HUGEPAGE
del os.sysconf_names["SC_AVPHYS_PAGES"]

"""
_IMPORTS = """
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
_COMMANDS = """
from engram_cli.cli.app import app
sys.platform = "darwin"  # not before: Numba keeps its cache elsewhere there
for line in (
    "compress-vocab tokenizer.json",
    "build-table --rows-per-head 100 --layers 1 --dim 8",
    "verify engram-table.zarr",
    "lookup engram-table.zarr words",
):
    code = app(line.split(), standalone_mode=False)
    assert not code, (line, code)
"""


def macos(code: str, *arguments: str, folder: Path) -> None:
    """Run code without what macOS lacks; fails with its error."""
    command = [sys.executable, "-c", _MACOS + code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_modules_that_call_the_system_can_be_imported(tmp_path: Path) -> None:
    package = Path(engram_cli.__file__).parent
    names = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
        if "runtime" not in path.parts and _CALLS.search(path.read_text(encoding="utf-8"))
    ]
    assert {"engram_cli.temporary", "engram_cli.table.scan.source"} <= set(names)
    macos(_IMPORTS, *names, folder=tmp_path)


def test_commands_need_nothing_that_macos_lacks(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    macos(_COMMANDS, folder=tmp_path)


def test_the_twin_of_preadv_reads_what_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    handle = os.open(path, os.O_RDONLY)
    try:
        for begin in (0, 90, 97, 100):
            read = [[memoryview(bytearray(5)), memoryview(bytearray(4))] for _ in range(2)]
            counts = [preadv(handle, read[0], begin), os.preadv(handle, read[1], begin)]
            assert counts[0] == counts[1] == min(9, 100 - begin)
            assert [bytes(each) for each in read[0]] == [bytes(each) for each in read[1]]
    finally:
        os.close(handle)


def test_free_memory_where_the_system_tells_only_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(free_memory, "available_memory", lambda: None)
    monkeypatch.delitem(os.sysconf_names, "SC_AVPHYS_PAGES")
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    assert free_memory.free_host_bytes() == half


@pytest.mark.parametrize("module", ["engram_cli.__main__", "engram_tables"])
def test_windows_is_refused_in_one_line(module: str) -> None:
    code = f"import sys; from {module} import main; sys.platform = 'win32'; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: engram runs on Linux and macOS, not on Windows - run it in WSL (wsl --install)\n"
    )
