"""A headless Chromium that is driven over the DevTools protocol: real clicks, keys and pictures."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-port=0", "--force-color-profile=srgb", "about:blank",
)  # fmt: skip
_MIDDLE = """(selector, text) => {
  const own = [...document.querySelectorAll(selector)].find(
    (each) => each.getClientRects().length && each.textContent.includes(text));
  if (!own) return null;
  own.scrollIntoView({ block: "center" });
  const box = own.getClientRects()[0];
  return [box.x + box.width / 2, box.y + box.height / 2];
}"""
_PATIENCE = 20.0  # seconds


class Page:
    """One page of the browser. `console`: what it wrote there; `requests`: what it asked for."""

    def __init__(self, connection: Any) -> None:
        self._connection, self._number = connection, 0
        self.console: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **given: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": given}))
        while True:
            message = json.loads(self._connection.recv(timeout=_PATIENCE))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.console.append(str(given["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded":
            self.console.append(str(given["entry"]["text"]))
        elif message["method"] == "Runtime.consoleAPICalled":
            self.console.append(str(given["args"]))
        elif message["method"] == "Network.requestWillBeSent":
            self.requests.append(str(given["request"]["url"]))

    def run(self, script: str) -> Any:
        """Return the value of an expression, awaited."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Return the value of an expression once it is true; an element is true."""
        script = f"(() => {{ const own = {script}; return own instanceof Node ? true : own; }})()"
        end = time.monotonic() + _PATIENCE
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}; {self.console}"
            time.sleep(0.02)
        return found

    def open(self, address: str) -> None:
        """Open an address, and wait until its script has run."""
        self.send("Page.navigate", url=address)
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window and the colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def click(self, selector: str, text: str = "") -> None:
        """Click the middle of the first visible element with a text, as a mouse does."""
        found = self.wait(f"({_MIDDLE})({json.dumps(selector)}, {json.dumps(text)})")
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind, x=found[0], y=found[1], button="left", clickCount=1,
            )  # fmt: skip

    def type(self, text: str) -> None:
        """Type a text where the cursor is."""
        self.send("Input.insertText", text=text)

    def key(self, name: str, code: int, *, ctrl: bool = False, text: str = "") -> None:
        """Press a key by its name and code."""
        given = {"key": name, "windowsVirtualKeyCode": code, "modifiers": 2 if ctrl else 0}
        typed = {"text": text} if text else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **given, **typed)
        self.send("Input.dispatchKeyEvent", type="keyUp", **given)

    def picture(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        found = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start a browser with a profile of its own, and give its page."""
    from websockets.sync.client import connect

    assert CHROMIUM is not None
    command = [CHROMIUM, f"--user-data-dir={profile}", *_FLAGS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_target(profile, process), max_size=None, compression=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def _target(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address of the first page, once the browser listens."""
    import urllib.request

    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, "the browser ended"
        try:
            port = int((profile / "DevToolsActivePort").read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [each for each in json.load(answer) if each["type"] == "page"]
        except (OSError, ValueError, IndexError):
            pages = []
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError("the browser never listened")
