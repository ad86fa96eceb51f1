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
from engram_cli.report.draw import draw
from engram_cli.report.markup import Html, embed_json, join, tag
from engram_cli.report.place import PAGE
from engram_cli.version import __version__
from engram_cli.view import Page, View

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M2 3h5v4H2zM9 3h5v4H9zM2 9h5v4H2z' fill='%231f6fb2'/%3E%3C/svg%3E"
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
        sections = [(view, _section(view)) for view in page.views]
        data = embed_json(dict(page.data), "engram-data")
    except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"[:200]
        raise ArtifactError(
            f"'{page.title}' cannot be drawn ({said})", "make its data again"
        ) from None
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
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
        tag("div", _contents(page.views), _main([drawn for _, drawn in sections]), class_="page"),
        _footer(),
        tag("div", id="tip", role="status", hidden=True),
        data,
        tag("script", Html(script)),
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
    items = [tag("li", tag("a", _unbroken(view.title), href=f"#{view.name}")) for view in views]
    return tag("nav", tag("ol", *items), aria_label="Contents")


def _section(view: View) -> Html:
    return tag(
        "section",
        tag("h2", view.title, id=f"{view.name}-heading"),
        tag("p", _unbroken(view.lead), class_="lead") if view.lead else None,
        *[draw(part) for part in view.parts],
        id=view.name,
        aria_labelledby=f"{view.name}-heading",
    )


def _main(sections: list[Html]) -> Html:
    empty = tag("p", "There are no figures that can be drawn.", class_="lead")
    return tag("main", *(sections or [empty]), id="figures")


def _unbroken(text: str) -> str:
    """Return text in which no line ends inside "n-gram"."""
    return text.replace("n-gram", "n\u2011gram")


def _footer() -> Html:
    said = [
        "This page is one file: it loads nothing and sends nothing. It holds the data it shows, as "
        "JSON, in the element ",
        tag("code", "engram-data"),
        ".",
    ]
    return tag("footer", tag("p", join(said)))


def _asset(name: str) -> str:
    return files("engram_cli.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
