"""docs/pictures/real-corpus-*.png: sections of a report of a corpus, in a window of 1,000 pixels.

    python tests/benchmarks/gather_corpus.py corpus --megabytes 260
    engram compress-vocab
    engram hash-stats corpus --field text --preset deepseek-v4.1 --locality --holdout 0.02 \\
        --report report.html
    PYTHONPATH=tests python tests/docs/report_pictures.py report.html

A second argument is another folder to write to. Needs Chromium and the package websockets. The
pictures belong to the figures of docs/concepts/a-real-corpus.md: change both.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from explore.browser import chromium

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
SECTIONS = ("clean-heads", "growth", "hot-set", "row-hits")
_BOX = """(() => {
  const box = document.getElementById('NAME').getBoundingClientRect();
  return { x: box.x + scrollX - 16, y: box.y + scrollY - 16,
           width: box.width + 32, height: box.height + 32, scale: 1 };
})()"""


def main(report: Path, folder: Path = FOLDER) -> None:
    """Write a picture of each section of the report."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
        page.look(1000, 1000)
        page.send("Page.navigate", url=report.resolve().as_uri())
        for name in SECTIONS:
            page.wait(f"document.querySelector('#{name} figure svg, #{name} figure canvas')")
            found = page.send(
                "Page.captureScreenshot",
                format="png",
                clip=page.run(_BOX.replace("NAME", name)),
                captureBeyondViewport=True,
            )
            (folder / f"real-corpus-{name}.png").write_bytes(base64.b64decode(found["data"]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
