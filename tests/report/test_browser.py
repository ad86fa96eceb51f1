"""The page in headless Chromium: figures drawn, script run, nothing said on the console."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report.documents import full_document, page_of, rendered, write
from report.test_page import HOSTILE, with_texts

from engram_cli.charts import Bar, BarChart, Group, Slot, share_axis
from engram_cli.report.page import render
from engram_cli.view import Page, Shades, Summary, View, charts_of

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


def probed(text: str, folder: Path, script: str, *flags: str) -> Any:
    """What `script`, run after those of the page, resolves to; the page's policy is taken out."""
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert policy.search(text)
    run = f"""<script>(async () => {{ {script} }})().then(
        (found) => {{ document.body.dataset.found = JSON.stringify(found); }},
        (error) => {{ document.body.dataset.found = JSON.stringify(String(error.stack)); }});
        </script></body>"""
    page = folder / "probed.html"
    page.write_text(policy.sub("", text).replace("</body>", run), encoding="utf-8")
    done = browse(page, folder / "profile", "--virtual-time-budget=9000", *flags, "--dump-dom")
    assert console(done) == []
    [found] = re.findall(r'<body[^>]* data-found="([^"]*)"', done.stdout)
    return json.loads(html.unescape(found))


def test_the_console_is_heard(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>null.f()</script>")
    assert console(browse(page, tmp_path / "profile", "--dump-dom")) != []


def shaded_page() -> str:
    """A page with a shaded text, as of a traced one."""
    shades = Shades(
        pieces=("one", " two", "</script>"),
        shades=(0.0, 0.5, 1.0),
        notes=("gate 0.1", "gate 0.2", "gate <b>0.3"),
        title="Tokens",
        legend=((0.0, "closed"), (1.0, "open")),
    )
    view = View(name="text", title="Text", lead="", parts=(Summary("First."), shades))
    return render(Page(kicker="k", heading="h", title="t", facts=(), views=(view,), data={}))


def short_page() -> str:
    """A page with every section and short lists: axe looks at every element."""
    document = full_document()
    for entry in document["top_ngrams"]:
        del entry["ngrams"][2:]
    del document["worst_rows"][2:]
    return rendered(document)


@pytest.mark.parametrize("make", [short_page, shaded_page])
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (500, "dark")])
def test_axe_finds_nothing_serious(
    tmp_path: Path, theme: str, width: int, make: Callable[[], str]
) -> None:
    found = find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("axe-core-python is not installed")
    axe = (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    script = f"""{axe}
        const found = await axe.run();
        const wide = [...document.querySelectorAll("section > .scroll, .opening > .scroll")]
            .filter((each) => each.scrollWidth > each.clientWidth + 1);
        return {{
            theme: document.documentElement.dataset.theme,
            serious: found.violations.filter((each) => ["serious", "critical"].includes(
                each.impact)).map((each) => [each.id, each.nodes[0].html]),
            passes: found.passes.length,
            over: document.documentElement.scrollWidth - innerWidth,
            cut: wide.map((each) => each.getAttribute("aria-label")),
        }};"""
    themed = make().replace('let theme = "auto";', f'let theme = "{theme}";')
    result = probed(themed, tmp_path, script, f"--window-size={width},1600")
    assert result["theme"] == theme
    assert result["serious"] == []
    assert result["passes"] > 10
    assert result["over"] <= 0
    assert width < 1280 or result["cut"] == []


def test_charts_give_their_values_to_keys_and_fingers_and_as_files(tmp_path: Path) -> None:
    script = """
        const chart = document.querySelector("#clean-1-2 svg.chart");
        const tip = document.getElementById("tip");
        const press = (key) => chart.dispatchEvent(new KeyboardEvent("keydown", {key}));
        chart.focus();
        const keys = ["ArrowRight", "ArrowRight", "End"];
        const said = keys.map((key) => (press(key), tip.textContent));
        document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
        const gone = tip.hidden;
        const box = chart.getBoundingClientRect();
        chart.dispatchEvent(new PointerEvent("pointerdown", {
            pointerType: "touch", clientX: box.left + 70, clientY: box.top + 90, bubbles: true}));
        const touched = tip.hidden ? "" : tip.textContent;
        const blobs = [];
        URL.createObjectURL = (blob) => (blobs.push(blob), "#");
        for (const kind of ["csv", "svg"])
            document.querySelector(`#sharing button[data-save=${kind}]`).click();
        return {said, gone, touched, files: await Promise.all(blobs.map((each) => each.text()))};"""
    found = probed(rendered(full_document()), tmp_path, script)
    clean = full_document()["clean_heads"][0]
    first, second, last = found["said"]
    assert first.startswith("0 of 8 heads clean")
    assert f"n-grams{100 * clean['ngrams'][1]:.3f}" in second
    assert last.startswith("8 of 8")
    assert found["gone"]
    assert found["touched"].startswith("0 of 8")
    table, picture = found["files"]
    lines = table.split("\r\n")
    assert lines[0] == "curve,rows per head,look-ups that meet a shared row,low,high"
    assert len(lines) == 4 * 60 + 2  # three orders, their mean, a head, an end
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in picture
    assert "you are here" in picture


def test_csv_holds_no_formulas(tmp_path: Path) -> None:
    names = ("=1+2", 'a,"b"', "plain")
    groups = tuple(Group(name, (Slot(name, (Bar("x", 0, 0.5),)),)) for name in names)
    chart = BarChart(name="c", title="C", description="d", y=share_axis("y"), groups=groups)
    view = View(name="v", title="V", lead="", parts=(chart,))
    page = Page(kicker="k", heading="h", title="t", facts=(), views=(view,), data={})
    script = """
        const blobs = [];
        URL.createObjectURL = (blob) => (blobs.push(blob), "#");
        document.querySelector("#c button[data-save=csv]").click();
        return blobs[0].text();"""
    table = list(csv.reader(StringIO(probed(render(page), tmp_path, script))))
    assert [row[0] for row in table[1:]] == ["'=1+2", 'a,"b"', "plain"]
    assert table[1][3:] == ["0.5", "0", ""]


def test_tokens_give_their_values_to_keys_and_fingers(tmp_path: Path) -> None:
    script = """
        const text = document.querySelector(".shaded");
        const readout = document.querySelector(".readout");
        const shown = [!readout.hidden];
        for (const key of ["ArrowRight", "ArrowRight", "End"]) {
            text.dispatchEvent(new KeyboardEvent("keydown", {key}));
            shown.push(readout.textContent);
        }
        text.querySelector(".tok").dispatchEvent(new PointerEvent("pointerdown", {bubbles: true}));
        return [...shown, readout.textContent, text.querySelectorAll(".on").length];"""
    shown, first, second, last, touched, marked = probed(shaded_page(), tmp_path, script)
    assert shown
    assert first == touched == "Token 1 of 3: one gate 0.1"
    assert second == "Token 2 of 3: ␣two gate 0.2"
    assert last == "Token 3 of 3: </script> gate <b>0.3"
    assert marked == 1


@pytest.mark.parametrize("width", [1280, 500])
def test_a_picture_of_it_shows_something(tmp_path: Path, width: int) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    write(full_document(), page)
    browse(page, tmp_path / "profile", f"--window-size={width},1600", f"--screenshot={picture}")
    assert picture.stat().st_size > 40_000
