"""The web application: the page's files, and the questions that it asks, as JSON.

docs/guides/explore.md lists the addresses below `api/` and their parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engram_cli.errors import EngramError, InputError
from engram_cli.explore.explorer import MOST_MATCHES, Explorer
from engram_cli.explore.guard import App, Guard
from engram_cli.explore.workers import Busy, Workers
from engram_cli.files import address_of

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE = "index.html"
_MOST_NUMBERS = 64  # of a parameter
Question = Callable[[Explorer, Mapping[str, str]], Any]


def make_app(explorer: Explorer, workers: Workers, token: str, port: int) -> App:
    """Return the application, which answers below `/<token>/` alone."""
    routes = [Route(f"/api/{name}", _endpoint(ask, explorer, workers))
              for name, ask in QUESTIONS.items()]  # fmt: skip
    routes += [Route(f"/{name}", _file(*own)) for name, own in _assets().items()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})
    app.router.redirect_slashes = False  # it would lead to an address without the token
    return Guard(app, token, port)


def _assets() -> dict[str, tuple[bytes, str]]:
    """Return the files of the page and their types, by their addresses: "" for the page itself."""
    found = {}
    for each in files("engram_cli.explore").joinpath("assets").iterdir():
        kind = _TYPES.get(Path(each.name).suffix)
        if kind is not None:
            found["" if each.name == _PAGE else each.name] = (each.read_bytes(), kind)
    return found


def _file(content: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda request: Response(content, media_type=kind)


def _endpoint(ask: Question, explorer: Explorer, workers: Workers) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        given = dict(request.query_params)
        try:
            return await workers.run(lambda: _json(as_plain(ask(explorer, given))))
        except EngramError as error:
            return _error(400, type(error).__name__, error.message, error.hint)
        except Busy:
            return _error(503, "Busy", "too many requests at a time", "try again")
        except TimeoutError:
            return _error(504, "TimeoutError", "the answer takes too long", "try a shorter text")

    return answer


def _texts(explorer: Explorer, given: Mapping[str, str]) -> Any:
    return explorer.texts(_needed(given, "text"), given.get("against"), _number(given, "layer"))


def _ngram(explorer: Explorer, given: Mapping[str, str]) -> Any:
    parts = _needed(given, "tokens").split(",")[:_MOST_NUMBERS]
    tokens = [_whole(part, "tokens") for part in parts]
    return explorer.ngram(tokens, _number(given, "layer"))


def _row(explorer: Explorer, given: Mapping[str, str]) -> Any:
    order, head, row = (_whole(_needed(given, name), name) for name in ("order", "head", "row"))
    return explorer.row(order, head, row, _number(given, "layer"))


def _search(explorer: Explorer, given: Mapping[str, str]) -> Any:
    limit = min(max(_number(given, "limit") or 50, 1), MOST_MATCHES)
    order, layer = _number(given, "order"), _number(given, "layer")
    return explorer.search(given.get("q", ""), order, limit, layer)


QUESTIONS: dict[str, Question] = {
    "about": lambda explorer, given: explorer.about(),
    "lookup": _texts,
    "ngram": _ngram,
    "row": _row,
    "search": _search,
    "gates": lambda explorer, given: explorer.gates(_needed(given, "text")),
}


def _needed(given: Mapping[str, str], name: str) -> str:
    if name not in given:
        raise InputError(f"'{name}' is missing", f"add it to the address: ?{name}=...")
    return given[name]


def _number(given: Mapping[str, str], name: str) -> int | None:
    return _whole(given[name], name) if given.get(name) else None


def _whole(text: str, name: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise InputError(f"'{name}' is {text[:40]!r}, not a whole number", f"give {name}=1")
    return int(text)


def as_plain(value: Any) -> Any:
    """Return a result as JSON: paths as text, None for numbers that are not finite."""
    names = getattr(value, "__dataclass_fields__", None)
    if names is not None:
        return {name: as_plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple):
        return [as_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: as_plain(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return address_of(value) or str(value) if isinstance(value, Path) else value


def _json(value: Any, status: int = 200) -> Response:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(text, status, media_type="application/json")


def _error(status: int, kind: str, message: str, hint: str) -> Response:
    return _json({"error": {"class": kind, "message": message, "hint": hint}}, status)


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = ", ".join(f"api/{name}" for name in QUESTIONS)
    return _error(
        status, "NotFound", f"there is nothing at {request.url.path}", f"there is {known}"
    )


async def _failed(request: Request, error: Exception) -> Response:
    hint = "this is a bug in engram: report it"
    return _error(500, type(error).__name__, str(error), hint)
