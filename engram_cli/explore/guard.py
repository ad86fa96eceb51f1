"""Lets only the user's own page in: the token, the Host header and the origin of every request.

Any page that the browser shows can send requests to 127.0.0.1, and any program of this machine.
The token in the address keeps both out. The Host header must be this server's, which stops names
that resolve to 127.0.0.1 (DNS rebinding); the origin, if there is one, must be this page's.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_NAMES = ("127.0.0.1", "localhost")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """Serves `app` below `/<token>/` to requests of its own page, and refuses all others."""

    def __init__(self, app: App, token: str, port: int) -> None:
        self._app, self._token = app, token.encode()
        self._hosts = {f"{name}:{port}".encode() for name in _NAMES}
        if port == 80:  # browsers leave it out
            self._hosts |= {name.encode() for name in _NAMES}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, every answer with the headers above."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"no requests of type {scope['type']} are served")
        status = self._refusal(scope)
        if status is not None:
            await _say(guarded, status)
            return
        path = scope["path"].split("/", 2)
        if len(path) < 3:  # relative addresses of the page need the slash
            await _say(guarded, 307, [(b"location", b"/" + self._token + b"/")])
            return
        inner = "/" + path[2]
        await self._app(
            {**scope, "path": inner, "raw_path": inner.encode(), "root_path": ""}, receive, guarded
        )

    def _refusal(self, scope: Message) -> int | None:
        """Return the status of a request that is refused, None for one that is served."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403
        if any(origin not in self._origins for origin in headers.get(b"origin", [])):
            return 403
        followed = headers.get(b"sec-fetch-mode") == [b"navigate"]  # a link, by the user
        if b"cross-site" in headers.get(b"sec-fetch-site", []) and not followed:
            return 403
        given = scope["path"][1:].split("/", 1)[0].encode("utf-8", "surrogateescape")
        if not secrets.compare_digest(given, self._token):
            return 403
        return None if scope["method"] in ("GET", "HEAD") else 405


_SAYS = {
    307: b"",
    403: b"This page needs the whole address that engram explore printed.\n",
    405: b"Only GET is served.\n",
}


async def _say(send: Send, status: int, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = _SAYS[status]
    own = [(b"content-type", b"text/plain; charset=utf-8"), *(headers or ())]
    own.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})
