"""Only the page itself gets answers: by its token, from this machine, a few at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from commands.made import Made
from explore.conftest import PORT, TOKEN, client_of
from starlette.testclient import TestClient

from engram_cli.commands.requests.explore import ExploreRequest
from engram_cli.explore import app
from engram_cli.explore.guard import HEADERS
from engram_cli.explore.workers import Workers

HOME = f"http://127.0.0.1:{PORT}"


@pytest.mark.parametrize(
    "path",
    ["/", "/api/about", "/explore.js", "/wrong/", "/wrong/api/about", f"/{TOKEN}x/",
     f"/{TOKEN[:-1]}/api/about", f"//{TOKEN}/", f"/x/{TOKEN}/", f"/{TOKEN.upper()}/", "/%ff/"],
)  # fmt: skip
def test_without_the_token_there_is_nothing(client: TestClient, path: str) -> None:
    answer = client.get(f"{HOME}{path}")
    assert answer.status_code == 403
    assert "whole address" in answer.text


@pytest.mark.parametrize(
    ("host", "status"),
    [(f"127.0.0.1:{PORT}", 200), (f"LOCALHOST:{PORT}", 200), ("127.0.0.1", 403),
     (f"127.0.0.1:{PORT + 1}", 403), (f"evil.example:{PORT}", 403), ("", 403),
     (f"127.0.0.1.evil.example:{PORT}", 403)],
)  # fmt: skip
def test_the_host_must_be_this_server(client: TestClient, host: str, status: int) -> None:
    assert client.get("api/about", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [(HOME, 200), (f"http://localhost:{PORT}", 200), ("null", 403), ("http://evil.example", 403),
     (f"https://127.0.0.1:{PORT}", 403), ("http://127.0.0.1:1", 403)],
)  # fmt: skip
def test_the_origin_must_be_this_page(client: TestClient, origin: str, status: int) -> None:
    answer = client.get("api/about", headers={"origin": origin})
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_other_sites_load_nothing_but_links_lead_here(client: TestClient) -> None:
    own = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get("explore.js", headers=own).status_code == 403
    assert client.get("", headers={**own, "sec-fetch-mode": "navigate"}).status_code == 200


@pytest.mark.parametrize("path", ["", "explore.css", "api/about", "api/none", f"{HOME}/", "%zz"])
def test_every_answer_has_the_headers(client: TestClient, path: str) -> None:
    answer = client.get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_only_reading_is_served(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert client.request(method, "api/about").status_code == 405
    assert client.head("").status_code == 200


def test_the_address_without_its_slash_leads_to_the_page(client: TestClient) -> None:
    answer = client.get(f"{HOME}/{TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (307, f"/{TOKEN}/")


@pytest.mark.parametrize(
    "path", ["../pyproject.toml", "..%2f..%2fpyproject.toml", "/etc/passwd", "app.py", "%00",
             "assets/explore.js", "explore.js/", "index.html"],
)  # fmt: skip
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    assert client.get(f"{HOME}/{TOKEN}/{path}").status_code in (403, 404)


def test_the_page_names_no_other_place(client: TestClient) -> None:
    for name in ("", "explore.js", "dom.js", "texts.js", "detail.js", "explore.css"):
        text = client.get(name).text
        assert "https://" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert unsafe not in text


def test_errors_tell_no_more_than_a_line(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("no such thing")

    with client_of(ExploreRequest(path=client_path(client))) as own:
        monkeypatch.setattr("engram_cli.explore.explorer.Explorer.about", lambda self: broken())
        answer = own.get("api/about")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "no such thing"
    assert "Traceback" not in answer.text


def client_path(client: TestClient) -> Path:
    """Where the table of a client lies."""
    return Path(client.get("api/about").json()["path"])


def test_too_many_requests_are_turned_away(explored: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    held, begun = threading.Event(), threading.Event()

    def slow(explorer: object, given: object) -> object:
        begun.set()
        held.wait(10)
        raise app.InputError("done", "done")

    monkeypatch.setitem(app.QUESTIONS, "about", slow)
    workers = Workers(threads=1, most=1, seconds=30)
    with client_of(ExploreRequest(path=explored.table), workers) as client:
        first = threading.Thread(target=client.get, args=("api/about",))
        first.start()
        begun.wait(10)
        answer = client.get("api/lookup", params={"text": "a"})
        held.set()
        first.join(10)
        assert answer.status_code == 503
        assert answer.json()["error"]["class"] == "Busy"
        assert client.get("api/lookup", params={"text": "a"}).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(
    explored: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    monkeypatch.setitem(app.QUESTIONS, "about", lambda explorer, given: held.wait(10))
    workers = Workers(threads=1, most=1, seconds=0.05)
    with client_of(ExploreRequest(path=explored.table), workers) as client:
        assert client.get("api/about").status_code == 504
        # Its thread still works: nothing else is started.
        assert client.get("api/lookup", params={"text": "a"}).status_code == 503
        held.set()
