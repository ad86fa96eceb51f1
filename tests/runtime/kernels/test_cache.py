"""Triton's cache is put elsewhere where it cannot be written, and only there."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from engram_cli.runtime.kernels import cache

FOLDER = "TRITON_CACHE_DIR"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(cache, "_ROOM", 2**16)
    monkeypatch.delenv("TRITON_CACHE_MANAGER", raising=False)
    monkeypatch.delenv("TRITON_HOME", raising=False)
    return place


def test_a_cache_that_can_be_written_stays(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    monkeypatch.setenv(FOLDER, str(own))
    cache.place_cache()
    assert os.environ[FOLDER] == str(own)
    assert not [*own.iterdir(), *elsewhere.iterdir()]


def test_a_folder_that_cannot_be_made(
    tmp_path: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "file"))
    monkeypatch.setenv(FOLDER, "")
    with caplog.at_level(logging.WARNING):
        cache.place_cache()
    made = Path(os.environ[FOLDER])
    assert made.parent == elsewhere
    [record] = caplog.records
    assert f"{tmp_path / 'file' / '.triton' / 'cache'} cannot be written (" in record.getMessage()
    (made / "kernel").touch()
    cache._remove(made, os.getpid() + 1)  # as in a process that was forked
    assert made.is_dir()
    cache._remove(made, os.getpid())
    assert not made.exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, real = tmp_path / "own", tempfile.TemporaryFile
    monkeypatch.setenv(FOLDER, str(own))

    class Full:
        def __enter__(self) -> Full:
            self.room = 5000
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, content: bytes) -> int:
            taken = min(self.room, len(content))
            self.room -= taken
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return taken

    def opened(**options: Any) -> Any:
        return Full() if options["dir"] == own else real(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", opened)
    cache.place_cache()
    assert os.environ[FOLDER] != str(own)
    cache._remove(Path(os.environ[FOLDER]), os.getpid())


def test_one_that_is_on_no_disk_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("TRITON_CACHE_MANAGER", "theirs:Manager")
    cache.place_cache()
    assert os.environ[FOLDER] == str(tmp_path / "file" / "cache")
