"""Writes a page: views in, one HTML file that needs nothing else out.

Style and script are inside, named by their digests in a content security policy: no other script,
style, font or picture would be loaded, whatever a text on the page says.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from engram_cli.errors import ArtifactError
from engram_cli.outputs import new_file
from engram_cli.report.charts import chart_data
from engram_cli.report.draw import draw
from engram_cli.report.markup import Html, embed_json, join, tag, unbroken
from engram_cli.report.place import PAGE
from engram_cli.version import __version__
from engram_cli.view import Page, View, charts_of

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M2 3h5v4H2zM9 3h5v4H9zM2 9h5v4H2z' fill='%231f6fb2'/%3E%3C/svg%3E"
)

_CHARTS = ("d3.min.js", "plot.min.js", "charts.js")
_NO_SCRIPT = (
    "Charts are drawn by a script, which does not run here. Every figure has its numbers in a "
    "table below it."
)


def write_page(page: Page, path: Path, *, force: bool = False) -> None:
    """Write a page to `path`, whole or not at all.

    Raises OutputError when it cannot be written, ArtifactError for numbers that cannot be drawn.
    """
    text = render(page)
    with new_file(path, PAGE, force=force) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def render(page: Page) -> str:
    """Return a page as text. Equal pages give equal texts."""
    try:
        sections = [_section(view) for view in page.views]
        data = embed_json(dict(page.data), "engram-data")
        charts = [chart_data(chart) for view in page.views for chart in charts_of(view.parts)]
        drawn = embed_json(charts, "engram-charts") if charts else None
    except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"[:200]
        raise ArtifactError(
            f"'{page.title}' cannot be drawn ({said})", "make its data again"
        ) from None
    style = _asset("page.css")
    scripts = [_asset(name) for name in (*(_CHARTS if charts else ()), "page.js")]
    allowed = " ".join(f"'{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src {allowed}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("meta", name_="generator", content=f"engram {__version__}"),
        tag("title", page.title),
        tag("link", rel="icon", href=_ICON),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the figures", href="#figures", class_="skip"),
        _masthead(page),
        tag("noscript", tag("p", _NO_SCRIPT, class_="noscript")) if charts else None,
        tag("div", _contents(page.views), _main(sections), class_="page"),
        _footer(charts=bool(charts)),
        tag("div", id="tip", role="status", hidden=True),
        data,
        drawn,
        *(tag("script", Html(script)) for script in scripts),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _masthead(page: Page) -> Html:
    facts = [tag("div", tag("dt", name), tag("dd", _fact(value))) for name, value in page.facts]
    tools = (
        tag("button", "Theme: auto", id="theme", type="button", hidden=True),
        tag("button", "Save the data", id="save", type="button", hidden=True),
    )
    return tag(
        "header",
        tag("div", tag("p", page.kicker, class_="kicker"), tag("div", *tools, class_="tools"),
            class_="bar-top"),
        tag("h1", page.heading),
        tag("dl", *facts, class_="facts"),
        class_="masthead",
    )  # fmt: skip


def _fact(value: str) -> object:
    return tag("code", value, class_="digest") if value.startswith("sha256:") else value


def _contents(views: tuple[View, ...]) -> Html:
    items = [tag("li", tag("a", unbroken(view.title), href=f"#{view.name}")) for view in views]
    return tag("nav", tag("ol", *items), aria_label="Contents")


def _section(view: View) -> Html:
    """Draw a view; its heading and first part stay on one sheet of paper."""
    drawn = [draw(part) for part in view.parts]
    opening = tag(
        "div",
        tag("h2", view.title, id=f"{view.name}-heading"),
        tag("p", unbroken(view.lead), class_="lead") if view.lead else None,
        *drawn[:1],
        class_="opening",
    )
    return tag("section", opening, *drawn[1:], id=view.name,
               aria_labelledby=f"{view.name}-heading")  # fmt: skip


def _main(sections: list[Html]) -> Html:
    empty = tag("p", "There are no figures that can be drawn.", class_="lead")
    return tag("main", *(sections or [empty]), id="figures")


def _footer(*, charts: bool) -> Html:
    said: list[object] = [
        "This page is one file: it loads nothing and sends nothing. It holds the data it shows, as "
        "JSON, in the element ",
        tag("code", "engram-data"),
        ". Charts: Observable Plot and D3, © Observable, Inc. and Mike Bostock, ISC licence."
        if charts
        else ".",
    ]
    return tag("footer", tag("p", join(said)))


def _asset(name: str) -> str:
    return files("engram_cli.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
