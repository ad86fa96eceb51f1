"""The page: a document of figures in, one HTML file that needs nothing else out.

Style and script are inside, named by their digests in a content security policy: no other script,
style, font or picture would be loaded, whatever a text in the document says.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from engram_cli import __version__
from engram_cli.errors import ArtifactError
from engram_cli.outputs import new_file
from engram_cli.registry import Registry
from engram_cli.report.markup import Html, embed_json, join, tag
from engram_cli.report.numbers import brief, count, number
from engram_cli.report.place import PAGE
from engram_cli.report.sections import SECTIONS, Maker, Section

_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError)
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M2 3h5v4H2zM9 3h5v4H9zM2 9h5v4H2z' fill='%231f6fb2'/%3E%3C/svg%3E"
)


Facts = list[tuple[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageKind:
    """What a page is about: its words, its sections, and the facts under its heading.

    `remake` is the mend of a document that cannot be drawn.
    """

    kicker: str
    heading: str
    sections: Registry[Maker]
    title: Callable[[Mapping[str, Any]], str]
    facts: Callable[[Mapping[str, Any]], Facts]
    remake: str = "make the statistics again with engram hash-stats"


def write_report(
    document: Mapping[str, Any], path: Path, *, force: bool = False, kind: PageKind | None = None
) -> None:
    """Write the page of `document` to `path`, whole or not at all; a stats.json without a `kind`.

    Raises OutputError when it cannot be written, ArtifactError when the document is damaged.
    """
    text = render(document, kind or STATISTICS)
    with new_file(path, PAGE, force=force) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def render(document: Mapping[str, Any], kind: PageKind | None = None) -> str:
    """The page of `document` as text. The same document gives the same page."""
    kind = kind or STATISTICS
    sections = _sections(document, kind)
    style, script = _asset("page.css"), _asset("page.js")
    try:
        data = embed_json(dict(document), "engram-data")
        masthead = _masthead(document, kind)
    except (*_DAMAGE, RecursionError) as error:
        raise _damaged("the document", kind, error) from None
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
        tag("title", kind.title(document)),
        tag("link", rel="icon", href=_ICON),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the figures", href="#figures", class_="skip"),
        masthead,
        tag("div", _contents(sections), _main(sections), class_="page"),
        _footer(),
        tag("div", id="tip", role="status", hidden=True),
        data,
        tag("script", Html(script)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _sections(document: Mapping[str, Any], kind: PageKind) -> dict[str, Section]:
    made = {}
    for name in kind.sections:
        try:
            section = kind.sections.load(name)(document)
        except _DAMAGE as error:
            raise _damaged(f"the figures behind '{name}'", kind, error) from None
        if section is not None:
            made[name] = section
    return made


def _damaged(what: str, kind: PageKind, error: BaseException) -> ArtifactError:
    said = f"{type(error).__name__}: {error}"[:200]
    return ArtifactError(f"{what} cannot be drawn ({said})", kind.remake)


def _title(document: Mapping[str, Any]) -> str:
    return f"Engram report: {brief(number(document.get('tokens') or 0))} tokens"


def _statistics_facts(document: Mapping[str, Any]) -> Facts:
    layout, corpus = document.get("layout") or {}, document.get("corpus") or {}
    facts: Facts = []
    if corpus.get("files"):
        empty = corpus.get("empty_files") or 0
        facts.append(("Corpus", f"{count(corpus['files'])} files"
                      + (f", {count(empty)} of them empty" if empty else "")))  # fmt: skip
    facts.append(("Counted", f"{count(document.get('tokens') or 0)} tokens, "
                  f"{count(document.get('documents') or 0)} documents"
                  + (", joined" if document.get("join_documents") else "")))  # fmt: skip
    if layout:
        orders = ", ".join(str(order) for order in layout["orders"])
        layers = ", ".join(str(entry["layer"]) for entry in layout["layers"])
        facts.append(("Layout", f"{layout['scheme']}: orders {orders}, {layout['heads']} heads, "
                      f"layer{'s' if len(layout['layers']) > 1 else ''} {layers}"))  # fmt: skip
    if document.get("fingerprint"):
        facts.append(("Fingerprint", tag("code", str(document["fingerprint"]), class_="digest")))
    facts.append(("Made by", f"engram {document.get('tool_version') or __version__}"))
    return facts


def _masthead(document: Mapping[str, Any], kind: PageKind) -> Html:
    facts = kind.facts(document)
    return tag(
        "header",
        tag("div",
            tag("p", kind.kicker, class_="kicker"),
            tag("div",
                tag("button", "Theme: auto", id="theme", type="button", hidden=True),
                tag("button", "Save the data", id="save", type="button", hidden=True),
                class_="tools"),
            class_="bar-top"),
        tag("h1", kind.heading),
        tag("dl", *[tag("div", tag("dt", name), tag("dd", value)) for name, value in facts],
            class_="facts"),
        class_="masthead",
    )  # fmt: skip


def _contents(sections: Mapping[str, Section]) -> Html:
    items = [
        tag("li", tag("a", _unbroken(section.title), href=f"#{name}"))
        for name, section in sections.items()
    ]
    return tag("nav", tag("ol", *items), aria_label="Contents")


def _main(sections: Mapping[str, Section]) -> Html:
    if not sections:
        empty = tag("p", "There are no figures that can be drawn.", class_="lead")
        return tag("main", empty, id="figures")
    return tag(
        "main",
        *[
            tag("section",
                tag("h2", section.title, id=f"{name}-heading"),
                tag("p", _unbroken(section.lead), class_="lead"),
                *section.body,
                id=name, aria_labelledby=f"{name}-heading")
            for name, section in sections.items()
        ],
        id="figures",
    )  # fmt: skip


def _unbroken(text: str) -> str:
    """Text whose n-grams are not parted at the end of a line."""
    return text.replace("n-gram", "n\u2011gram")


def _footer() -> Html:
    return tag(
        "footer",
        tag("p", join(["This page is one file: it loads nothing and sends nothing. It holds the "
                       "statistics it shows, as JSON, in the element ", tag("code", "engram-data"),
                       "."])),
    )  # fmt: skip


def _asset(name: str) -> str:
    return files("engram_cli.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


STATISTICS = PageKind(
    kicker="Engram · hash statistics",
    heading="What this corpus does to this table",
    sections=SECTIONS,
    title=_title,
    facts=_statistics_facts,
)
