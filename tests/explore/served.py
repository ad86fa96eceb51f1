"""`engram explore` as a process of its own, as a user starts it, or in a thread of the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from engram_cli.commands.requests.explore import ExploreRequest
from engram_cli.explore.app import make_app
from engram_cli.explore.explorer import open_explorer
from engram_cli.explore.server import listening, web_server
from engram_cli.explore.workers import Workers


@dataclass
class Served:
    """A running process, and the address that it printed."""

    process: subprocess.Popen[str]
    address: str

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; return the exit code and what the process said on stderr."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def served(*arguments: str) -> Iterator[Served]:
    """Run `engram explore --json --no-browser` with more arguments, and end it afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "engram_cli", "explore", "--json", "--no-browser", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"BROWSER": "false"},
    )
    try:
        assert process.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            said += line
        yield Served(process, json.loads(said)["address"])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()


@contextmanager
def served_here(request: ExploreRequest, token: str) -> Iterator[str]:
    """Serve in a thread; give the address of the page."""
    with listening(0) as taken, closing(Workers()) as workers:
        port = taken.getsockname()[1]
        running = web_server(make_app(open_explorer(request), workers, token, port))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/{token}/"
        finally:
            running.should_exit = True
            thread.join(30)
