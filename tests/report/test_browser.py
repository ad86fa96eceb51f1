"""The page in headless Chromium: figures drawn, script run, nothing said on the console."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report.documents import full_document, page_of, write
from report.test_page import HOSTILE, with_texts

from engram_cli.view import charts_of

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on this machine")


def browse(page: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open `page` from the disk; stdout is what `flags` ask for, stderr holds the console."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--enable-logging=stderr", f"--user-data-dir={folder}",
        *flags, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the page wrote to the console, security violations included."""
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_figures_are_drawn(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write(full_document(), page)
    done = browse(page, tmp_path / "profile", "--dump-dom")
    assert console(done) == []
    assert 'data-ready="yes"' in done.stdout
    drawn = len(charts_of(part for view in page_of(full_document()).views for part in view.parts))
    assert done.stdout.count('class="chart"') == drawn > 10
    assert "NaN" not in re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    labels = re.findall(r'<svg[^>]*class="chart"[^>]*aria-label="[^"]+"', done.stdout)
    assert len(labels) == done.stdout.count('class="chart"')


def test_hostile_texts_do_not_run(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write(with_texts(HOSTILE), page)
    done = browse(page, tmp_path / "profile", "--dump-dom")
    assert console(done) == []
    assert "<title>Engram report: 63.7\u202fM tokens</title>" in done.stdout


def test_the_console_is_heard(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>null.f()</script>")
    assert console(browse(page, tmp_path / "profile", "--dump-dom")) != []


@pytest.mark.parametrize("width", [1280, 500])
def test_a_picture_of_it_shows_something(tmp_path: Path, width: int) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    write(full_document(), page)
    browse(page, tmp_path / "profile", f"--window-size={width},1600", f"--screenshot={picture}")
    assert picture.stat().st_size > 40_000
