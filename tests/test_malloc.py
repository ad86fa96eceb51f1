"""The heap: freed memory goes back every so often, arenas stay few; elsewhere nothing happens."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engram_cli import malloc


def test_freed_memory_is_given_back_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(malloc, "_TRIM_EVERY", 100)
    monkeypatch.setattr(malloc, "trim", lambda: calls.append(0))
    trimmer = malloc.Trimmer()
    for _ in range(10):
        trimmer.advance(30)
    assert calls == [0, 0]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    malloc.trim()  # the real one, where there is one
    monkeypatch.setattr(sys, "platform", "darwin")
    assert malloc._glibc("malloc_trim") is None
    malloc.trim()
    malloc.bound_arenas()


ARENAS = """
import ctypes, re, sys, threading
from engram_cli import malloc
if sys.argv[1] == "bound":
    malloc.bound_arenas()
gate = threading.Barrier(7)
def hold():
    kept = [bytes(50_000) for _ in range(9)]
    gate.wait()
threads = [threading.Thread(target=hold) for _ in range(6)]
[thread.start() for thread in threads]
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(library.fopen(sys.argv[2].encode(), b"w"))
library.malloc_info(0, stream)
library.fclose(stream)
gate.wait()
print(open(sys.argv[2]).read().count("<heap nr="))
"""


@pytest.mark.skipif(malloc._glibc("malloc_info") is None, reason="glibc has arenas")
def test_threads_share_few_arenas(tmp_path: object) -> None:
    def arenas(how: str) -> int:
        command = [sys.executable, "-c", ARENAS, how, f"{tmp_path}/info"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert arenas("bound") == 3 < arenas("free")


PIECES = """
import resource, sys, threading
import numpy as np
from engram_cli import malloc
if sys.argv[1] == "kept":
    malloc.keep_freed()
def work():
    for _ in range(100):
        held = [np.empty(2**20, np.uint8) for _ in range(6)]
        for each in held:
            each[::4096] = 1
        del held, each
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(malloc._glibc("malloc_trim") is None, reason="glibc's heap")
def test_pieces_are_not_given_back_each_time() -> None:
    faults = {}
    for kind in ("given", "kept"):
        done = subprocess.run(
            [sys.executable, "-c", PIECES, kind], check=True, capture_output=True, text=True
        )
        faults[kind] = int(done.stdout)
    assert faults["kept"] < faults["given"] / 2
