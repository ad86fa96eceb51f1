"""A Hub of the Hugging Face kind with one repository, for tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from formats import checkpoints
from huggingface_hub import constants, file_download

from engram_cli.corpus import storage

SHA = "5c0ffee" * 5 + "12345"
TOKEN = "hf_" + "a" * 30


class Hub:
    """A Hub with one repository, org/name; `moved`: where its files are, None for here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[tuple[str, str | None, str | None]]()
        self.status: int | None = None
        self.error = ""
        self.moved: str | None = None
        self.address = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer like the Hub: the files of a revision, or a range of one."""
        asked, token = request.headers.get("Range"), request.headers.get("Authorization")
        if "org/name" in request.path:  # its client asks for other things, once a process
            self.asked.append((request.path, asked, token))
        name = re.sub(r".*/org/name/resolve/(main|v2|[0-9a-f]+)/|.*", "", request.path, count=1)
        if self.status is not None:
            self._send(request, self.status, b"", **{"X-Error-Code": self.error})
        elif re.match(r"/api/(models|datasets)/org/name/revision/", request.path):
            files = (path for path in self.folder.rglob("*") if path.is_file())
            names = [
                {"rfilename": f"{path.relative_to(self.folder)}", "size": path.stat().st_size}
                for path in files
            ]
            about = {"id": "org/name", "sha": SHA, "siblings": names}
            self._send(request, 200, json.dumps(about).encode())
        elif name and self.moved is not None:
            self._send(request, 302, b"", Location=f"{self.moved}/{name}")
        elif name and asked is not None:
            begin, end = (int(each) for each in asked.removeprefix("bytes=").split("-"))
            raw = (self.folder / name).read_bytes()
            of = {"Content-Range": f"bytes {begin}-{end}/{len(raw)}"}
            self._send(request, 206, raw[begin : end + 1], **of)
        elif name and (self.folder / name).is_file():
            raw = (self.folder / name).read_bytes()
            about = {"ETag": f'"{sha256(raw).hexdigest()}"', "X-Repo-Commit": SHA}
            self._send(request, 200, raw, **about)
        else:
            self._send(request, 404, b"", **{"X-Error-Code": "RepoNotFound"})

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, an empty cache, a token, and an empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    storage._hub_root.cache_clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    checkpoints.qwen_ple(tmp_path / "repository")
    with running(Hub(tmp_path / "repository")) as running_hub:
        monkeypatch.setattr(constants, "ENDPOINT", running_hub.address)
        files = f"{running_hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in (constants, file_download):  # releases before 1.0 have a copy of it
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", files, raising=False)
        yield running_hub


def cached(hub: Hub, *names: str, revision: str = "main", kind: str = "models") -> Path:
    """Put files of the repository into the cache, as the Hub's client lays them out."""
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--org--name"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(SHA)
    for name in names:
        blob = folder / "blobs" / name
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes((hub.folder / name).read_bytes())
        link = folder / "snapshots" / SHA / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return folder / "snapshots" / SHA
