"""Serves the page of `engram explore` on 127.0.0.1 until Ctrl-C."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from engram_cli import interrupts
from engram_cli.commands.requests.explore import ExploreRequest
from engram_cli.errors import DependencyError, EngramError, InputError
from engram_cli.progress import SILENT, Progress

if TYPE_CHECKING:
    import uvicorn

    from engram_cli.explore.guard import App

HOST = "127.0.0.1"
_PACKAGES = ("starlette", "uvicorn")
_MOST_CONNECTIONS = 32


def explore(
    request: ExploreRequest,
    announce: Callable[[str], None] = lambda address: None,
    progress: Progress = SILENT,
) -> None:
    """Serve the page until Ctrl-C; `announce` is called with its address.

    Raises KeyboardInterrupt after SIGTERM, DependencyError without the packages, InputError for a
    port that is taken, and as `open_explorer`.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"engram explore needs {' and '.join(missing)}",
            "python -m pip install 'engram-tables[explore]'",
        )
    from engram_cli.explore.app import make_app
    from engram_cli.explore.explorer import open_explorer
    from engram_cli.explore.workers import Workers

    with listening(request.port) as server:
        explorer = open_explorer(request, progress)
        port, token = server.getsockname()[1], secrets.token_urlsafe(24)
        address = f"http://{HOST}:{port}/{token}/"
        with closing(Workers()) as workers:
            app = make_app(explorer, workers, token, port)
            announce(address)
            threading.Thread(target=_warm, args=(explorer.warm,), daemon=True).start()
            if request.browser and _has_display():
                _open(address)
            try:
                web_server(app).run(sockets=[server])
            except KeyboardInterrupt:  # the way to end it; SIGTERM stays an interrupt
                if interrupts.code() != 128 + signal.SIGINT:
                    raise


def web_server(app: App) -> uvicorn.Server:
    """Return a server that says nothing, and that has limits; `run` answers until a signal."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
        )
    )


def _has_display() -> bool:
    """Return whether a browser gets a window of its own, rather than this terminal."""
    return sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _open(address: str) -> None:
    """Open the address in the user's browser, whose start may take a while."""
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _warm(load: Callable[[], None]) -> None:
    """Load what the first question needs; what is wrong with it is said to who asks."""
    try:
        load()
    except EngramError:
        return


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """Give a socket that listens on 127.0.0.1; port 0 takes a free one. Raises InputError."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((HOST, port))
            server.listen(_MOST_CONNECTIONS)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "it is in use" if taken else error.strerror
            raise InputError(
                f"cannot listen on port {port} of {HOST}: {reason}",
                "give another --port, or leave it out for a free one",
            ) from None
        yield server
