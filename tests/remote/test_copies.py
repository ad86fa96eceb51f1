"""Copies of folders behind addresses: once for each version, only what is read, never by halves."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remote.server import Behaviour
from test_files import contents

from engram_cli.errors import OutputError, SourceError
from engram_cli.remote.copies import is_writable_here, local_copy
from engram_cli.remote.locate import locate

FILES = {
    "config.json": b"{}",
    "model-1.safetensors": bytes(range(256)) * 40_000,  # 10 MB: several pieces
    "tokenizer.json": b"{}",
    "engram/engram.json": b"{}",
    "engram/rows-00001-of-00001.safetensors": b"rows",
}
OTHERS = {"pytorch_model.bin": b"x", "onnx/model.safetensors": b"x", "a.gguf": b"x"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engram-tables" / "copies"


@pytest.fixture
def memory() -> Iterator[Any]:
    import fsspec

    system: Any = fsspec.filesystem("memory")
    for name, raw in (FILES | OTHERS).items():
        system.pipe(f"/bucket/m/{name}", raw)
    yield system
    system.rm("/bucket", recursive=True)


def copied() -> Path:
    return local_copy(locate(Path("memory://bucket/m")))


def test_what_is_read_is_copied_once(memory: Any, cache: Path) -> None:
    folder = copied()
    assert folder.parent == cache
    found = {name: raw for name, raw in contents(folder).items() if raw is not None}
    assert found == FILES
    (folder / "config.json").unlink()  # as after a copy that was interrupted
    before = (folder / "model-1.safetensors").stat().st_mtime_ns
    assert copied() == folder
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "model-1.safetensors").stat().st_mtime_ns == before
    memory.pipe("/bucket/m/config.json", b'{"a": 1}')
    other = copied()
    assert other != folder
    assert (other / "config.json").read_bytes() == b'{"a": 1}'
    assert not is_writable_here(folder)
    assert local_copy(folder) == folder


def test_a_copy_that_breaks_off_leaves_no_file_that_looks_whole(
    memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(memory).cat_file

    def cut(self: Any, path: str, start: int = 0, end: int | None = None, **more: Any) -> bytes:
        if "model-1" in path and start > 2**20:
            raise ConnectionError("cut")
        return bytes(real(self, path, start=start, end=end, **more))

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "cat_file", cut)
        with pytest.raises(SourceError, match="cut"):
            copied()
    left = [path.name for path in cache.rglob("*") if path.is_file()]
    assert "model-1.safetensors" not in left
    assert not [name for name in left if name.endswith(".part")]
    assert (copied() / "model-1.safetensors").read_bytes() == FILES["model-1.safetensors"]


def test_no_room(memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(Path())._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OutputError, match=r"needs 10,240,0.. bytes .* only 1,000,000 are free"):
        copied()


def test_a_disk_that_becomes_full(
    memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device") as caught:
        copied()
    assert "XDG_CACHE_HOME" in str(caught.value.hint)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_servers(server: Behaviour, cache: Path) -> None:
    for name, raw in FILES.items():
        path = server.folder / "m" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    folder = local_copy(locate(Path(f"{server.address}/m")))
    assert {name: raw for name, raw in contents(folder).items() if raw is not None} == FILES
    server.lists = False
    with pytest.raises(SourceError, match="lists no files") as caught:
        local_copy(locate(Path(f"{server.address}/m")))
    assert caught.value.hint == "download the folder first"
