"""docs/pictures/real-corpus-*.png: charts of a report of a corpus.

    python tests/benchmarks/gather_corpus.py corpus --megabytes 260
    engram compress-vocab
    engram hash-stats corpus --field text --preset deepseek-v4.1 --locality --holdout 0.02 \\
        --group-by source --compare-uncompressed --ngrams --report report.html
    PYTHONPATH=tests python tests/docs/report_pictures.py report.html

A second argument is another folder to write to. Needs Chromium and the package websockets. The
pictures belong to the figures of docs/concepts/a-real-corpus.md: change both.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import time
from pathlib import Path

from explore.browser import chromium

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
# The charts of each picture, of the first layer: those of the other look the same.
PICTURES = {
    "clean-heads": ("clean-1-2", "clean-1-3", "clean-1-4"),
    "growth": ("heaps", "rows-in-use-1"),
    "hot-set": ("hot-1", "lru-1"),
    "row-hits": ("row-hits-1",),
}
_WIDTH = {1: 520, 2: 960, 3: 960}  # by the number of charts
# Puts charts side by side into the page, without what readers click; they draw themselves again.
_SHOW = """(() => {
  const own = document.createElement("div");
  own.id = "picture";
  own.style = "display: grid; grid-template-columns: repeat(COUNT, minmax(0, 1fr)); "
    + "gap: 2rem; padding: 16px; width: WIDTHpx; box-sizing: border-box";
  document.getElementById("picture")?.remove();
  for (const name of NAMES) {
    const figure = document.getElementById(name);
    figure.querySelectorAll("details, .offers").forEach((each) => each.remove());
    figure.style.marginBottom = 0;
    own.append(figure);
  }
  document.body.prepend(own);
})()"""
_BOX = """(() => {
  const box = document.getElementById("picture").getBoundingClientRect();
  return { x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height, scale: 1 };
})()"""


def main(report: Path, folder: Path = FOLDER) -> None:
    """Write the pictures of a report."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
        page.look(1000, 1000)
        page.send("Page.navigate", url=report.resolve().as_uri())
        page.wait("document.querySelector('#row-hits figure svg')")
        for name, charts in PICTURES.items():
            show = _SHOW.replace("NAMES", json.dumps(charts)).replace("COUNT", str(len(charts)))
            page.run(show.replace("WIDTH", str(_WIDTH[len(charts)])))
            time.sleep(1.0)  # until the charts have been drawn in their new width
            found = page.send(
                "Page.captureScreenshot",
                format="png",
                clip=page.run(_BOX),
                captureBeyondViewport=True,
            )
            (folder / f"real-corpus-{name}.png").write_bytes(base64.b64decode(found["data"]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
