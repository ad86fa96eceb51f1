"""docs/pictures/explore.png: the page of `engram explore` on the table of the demo.

    engram demo --no-train
    PYTHONPATH=tests python tests/docs/explore_picture.py engram-demo

Needs Chromium and the package websockets.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from explore.browser import chromium
from explore.served import served

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "explore.png"
TEXT = "def read(self, path): return open(path).read()"
NGRAM = "defread"  # without the gap between its tokens


def main(folder: Path) -> None:
    """Look a text up, follow one of its n-grams, and keep what the window shows."""
    with (
        tempfile.TemporaryDirectory() as profile,
        served(str(folder / "engram-table.zarr")) as own,
        chromium(Path(profile)) as page,
    ):
        page.look(1280, 960)
        page.open(f"{own.address}?{urlencode({'text': TEXT})}")
        page.click(".gram", NGRAM)
        page.wait("document.querySelector('#detail h2')")
        page.run("scrollTo(0, 0)")
        page.picture(PICTURE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
