"""A web server for each test, and no long waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from remote.server import Behaviour, serving

from engram_cli.remote import session


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Behaviour]:
    """A server of the folder `served`."""
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as behaviour:
        yield behaviour


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(session, "FIRST_WAIT", 0.0)
