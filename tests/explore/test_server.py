"""The command: what it prints, who reaches it, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest
from commands.made import Made
from explore.served import served
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.commands.requests.explore import ExploreRequest
from engram_cli.errors import DependencyError
from engram_cli.explore import server


def said_by(*arguments: str) -> tuple[int, str]:
    """Run the command where it ends by itself."""
    result = CliRunner().invoke(app, ["explore", "--no-browser", *arguments])
    return result.exit_code, " ".join(result.output.split())


def test_it_serves_this_machine_until_ctrl_c(explored: Made) -> None:
    with served(str(explored.table)) as own:
        assert own.address.startswith("http://127.0.0.1:")
        token = own.address.split("/")[3]
        assert len(token) >= 32
        with urllib.request.urlopen(f"{own.address}api/about") as answer:
            assert json.load(answer)["kind"] == "table"
            assert "server" not in answer.headers
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(own.address.replace(token, "x" * len(token)))
        code, said = own.end(signal.SIGINT)
        assert (code, said) == (0, "")


def test_sigterm_ends_it_too(explored: Made) -> None:
    with served(str(explored.stats)) as own:
        assert own.end(signal.SIGTERM)[0] == 143


def test_a_port_in_use_is_one_clear_line(explored: Made) -> None:
    with server.listening(0) as taken:
        port = taken.getsockname()[1]
        code, said = said_by(str(explored.table), "--port", f"{port}")
    assert code == 2
    assert said == (
        f"error: cannot listen on port {port} of 127.0.0.1: it is in use - give another --port, or "
        "leave it out for a free one"
    )


def test_it_listens_on_this_machine_alone() -> None:
    with server.listening(0) as found:
        assert found.getsockname()[0] == "127.0.0.1"
        assert found.family == socket.AF_INET


def test_missing_packages_are_named(explored: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="needs starlette and uvicorn") as error:
        server.explore(ExploreRequest(path=explored.table))
    assert error.value.hint == "python -m pip install 'engram-tables[explore]'"


def test_nothing_is_served_of_what_cannot_be_opened(explored: Made) -> None:
    code, said = said_by(str(explored.folder / "corpus.txt"))
    assert code == 2
    assert "was not written by engram" in said


def test_a_browser_is_opened_only_where_it_has_a_window(
    explored: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Ended:
        def __init__(self, config: Any) -> None: ...
        def run(self, sockets: list[socket.socket]) -> None: ...

    monkeypatch.setattr("uvicorn.Server", Ended)
    monkeypatch.setattr(server, "_open", opened.append)
    for display, browser, count in ((True, True, 1), (True, False, 0), (False, True, 0)):
        monkeypatch.setattr(server, "_has_display", lambda display=display: display)
        opened.clear()
        addresses: list[str] = []
        request = ExploreRequest(path=explored.table, browser=browser)
        server.explore(request, addresses.append)
        assert opened == addresses * count
