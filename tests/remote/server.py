"""A web server that knows ranges, counts what it sends, and can be made to fail in known ways."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Behaviour:
    """What a server does, and what it has done.

    `ranges`: whether it knows them. `busy`, `cut`: so many of the next answers to GET are 503, or
    end in the middle. `status`: of paths that are not served. `lists`: whether folders are shown.
    `version`: the ETag of all files. `token`: what Authorization must say. `moved`: the address
    that everything is at. `sent`: bytes of bodies; `asked`: (method, path, range).
    """

    folder: Path
    ranges: bool = True
    busy: int = 0
    cut: int = 0
    head: bool = True
    lists: bool = True
    version: str = '"1"'
    token: str | None = None
    moved: str | None = None
    status: dict[str, int] = field(default_factory=dict)
    sent: int = 0
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    address: str = ""


class Handler(SimpleHTTPRequestHandler):
    """Answers HEAD and GET as the `Behaviour` says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def __init__(self, *given: Any, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        super().__init__(*given, directory=str(behaviour.folder))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer with a body."""
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        own, asked = self.behaviour, self.headers.get("Range")
        with own.lock:
            own.asked.append((self.command, self.path, asked))
            own.tokens.append(self.headers.get("Authorization"))
            busy, cut = body and own.busy > 0, body and own.cut > 0
            own.busy -= busy
            own.cut -= cut and not busy
        if busy:
            self._empty(503)
        elif own.moved is not None:
            self._empty(302, Location=own.moved + self.path)
        elif not body and not own.head:
            self._empty(405)
        elif own.token is not None and self.headers.get("Authorization") != own.token:
            self._empty(401)
        elif (status := own.status.get(self.path)) is not None:
            self._empty(status)
        else:
            self._file(body=body, asked=asked, cut=cut)

    def _empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _file(self, *, body: bool, asked: str | None, cut: bool) -> None:
        own, path = self.behaviour, Path(self.translate_path(self.path))
        if path.is_dir():
            if own.lists:
                (super().do_GET if body else super().do_HEAD)()
            else:
                self._empty(404)
            return
        if not path.is_file():
            self._empty(404)
            return
        size = path.stat().st_size
        begin, end, status = 0, size, 200
        match = re.fullmatch(r"bytes=(\d*)-(\d+)", asked or "")
        if match and own.ranges:
            begin, end, status = int(match[1] or 0), min(int(match[2]) + 1, size), 206
            if not match[1]:  # so many bytes of the end
                begin, end = max(0, size - int(match[2])), size
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", own.version)
        self.end_headers()
        if body:
            self._send(path, begin, begin + (end - begin) // 2 if cut else end)
            self.close_connection = cut

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send the page of a folder."""
        page = source.read()
        with self.behaviour.lock:
            self.behaviour.sent += len(page)
        outputfile.write(page)

    def _send(self, path: Path, begin: int, end: int) -> None:
        with path.open("rb") as file:
            file.seek(begin)
            while begin < end:
                piece = file.read(min(2**20, end - begin))
                with self.behaviour.lock:  # before it is sent, so that who has it finds it counted
                    self.behaviour.sent += len(piece)
                try:
                    self.wfile.write(piece)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                    return
                begin += len(piece)


@contextmanager
def serving(folder: Path) -> Iterator[Behaviour]:
    """Serve a folder at `address` while the block runs."""
    behaviour = Behaviour(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, behaviour=behaviour))
    server.daemon_threads = True
    behaviour.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":  # python tests/remote/server.py FOLDER
    with serving(Path(sys.argv[1])) as shown:
        print(shown.address, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
