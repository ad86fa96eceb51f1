"""The page as text: whole, offline, with the sections its data allow, and no text in it acts."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report.documents import full_document, page_of, rendered, write

from engram_cli.errors import ArtifactError, OutputError
from engram_cli.report.charts import chart_data, numbers_of
from engram_cli.report.markup import embed_json, escape, ngram, tag
from engram_cli.report.page import render
from engram_cli.view import Page, Shades, View, charts_of

VOID = {"meta", "link", "br", "hr"}
SECTIONS = {
    *("verdict", "orders", "occupancy", "clean-heads", "growth", "hot-set", "cache", "row-hits"),
    *("sources", "compression", "ngrams", "worst-rows", "layout"),
}
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=alert(1)>",
    "]]>--><!--<script>",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "&lt;b&gt;&#60;i&#62;",
    "a\u2028b\u2029c",
    "\u202ereversed\u2066",
    "\ud800 alone",
    "\x00\x1b[31m",
    "javascript:alert(1)",
    "",
)


class Reader(HTMLParser):
    """Elements, ids, addresses and scripts of a page; fails when elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.elements: dict[str, int] = {}
        self.scripts: list[dict[str, str | None]] = []
        self.data = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] = self.elements.get(tag, 0) + 1
        own = dict(attrs)
        assert len(own) == len(attrs), f"an attribute twice in {tag}"
        self.handlers += [name for name in own if name.startswith("on") or name == "style"]
        self.addresses += [own[n] or "" for n in ("src", "href", "xlink:href", "data") if n in own]
        if "id" in own:
            self.ids.append(str(own["id"]))
        if tag == "script":
            self.scripts.append(own)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.scripts and self.open[-1:] == ["script"] and len(self.scripts) == 1:
            self.data += data


def embedded(text: str, name: str) -> str:
    """The JSON with this id in a page."""
    return text.split(f'<script type="application/json" id="{name}">')[1].split("</script>")[0]


def with_texts(texts: tuple[str, ...]) -> dict[str, Any]:
    """The full document with these as n-grams and names of sources."""
    document = full_document()
    listed = [{"text": text, "tokens": [1], "count": 9, "error": 0} for text in texts]
    for entry in document["top_ngrams"] + document["worst_rows"]:
        entry["ngrams"] = listed
    document["sources"]["names"] = list(texts[:3])
    return document


def test_the_page_nests_and_its_ids_are_different() -> None:
    page = Reader(rendered(full_document()))
    assert len(set(page.ids)) == len(page.ids)
    assert page.elements["figure"] > 15
    assert set(page.ids) >= SECTIONS


def test_the_page_loads_nothing() -> None:
    text = rendered(full_document())
    page = Reader(text)
    assert all(each.startswith(("#", "data:image/svg+xml,")) for each in page.addresses)
    json_blocks, scripts = ["application/json"] * 2, [None] * 4
    assert [own.get("type") for own in page.scripts] == [*json_blocks, *scripts]
    assert page.handlers == []
    ours = re.sub(r"<script>// (?:https://d3js|@observablehq).*?</script>", "", text, flags=re.S)
    assert len(text) - len(ours) > 400_000  # libraries name their homes, and load nothing
    for forbidden in ("@import", "url(", "http://", "https://", "//cdn", "fetch(", "XMLHttp"):
        assert forbidden not in ours.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in text.replace("&#x27;", "'")


def test_the_page_holds_its_data() -> None:
    document = full_document()
    assert json.loads(Reader(rendered(document)).data) == json.loads(json.dumps(document))


def test_the_same_document_gives_the_same_page() -> None:
    assert rendered(full_document()) == rendered(full_document())


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("clean_heads", {"clean-heads"}),
        ("growth", {"growth"}),
        ("locality", {"hot-set", "cache"}),
        ("row_hits", {"row-hits"}),
        ("sources", {"sources"}),
        ("uncompressed", {"compression"}),
        ("top_ngrams", {"ngrams"}),
        ("worst_rows", {"worst-rows"}),
        ("orders", {"verdict", "orders", "compression"}),
    ],
)
def test_a_section_is_there_with_its_data_only(key: str, names: set[str]) -> None:
    document = full_document()
    del document[key]
    missing = SECTIONS - set(Reader(rendered(document)).ids)
    assert missing == names


def test_parts_of_locality_may_be_missing() -> None:
    document = full_document()
    document["locality"] = {"hot": document["locality"]["hot"]}
    for entry in document["locality"]["hot"]:
        entry["held_out"] = None
    text = rendered(document)
    assert "held out</li>" not in text
    assert "--holdout" in text
    assert "cache" not in Reader(text).ids


def test_a_page_of_nothing_says_so() -> None:
    assert "no figures that can be drawn" in render(replace(page_of(full_document()), views=()))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_inert(text: str) -> None:
    calm, page = Reader(rendered(full_document())), Reader(rendered(with_texts((text,) * 3)))
    assert page.elements["script"] == calm.elements["script"] == 6
    assert "img" not in page.elements
    assert page.handlers == []
    data = json.loads(page.data)
    assert data["top_ngrams"][0]["ngrams"][0]["text"] == text


def test_hostile_metadata_is_inert() -> None:
    document = full_document()
    document["tool_version"] = document["fingerprint"] = HOSTILE[0]
    found = page_of(document)
    facts = tuple((name, HOSTILE[1]) for name, _ in found.facts)
    page = Reader(render(replace(found, facts=facts, title=HOSTILE[0])))
    assert page.elements["script"] == 6
    assert "img" not in page.elements


def test_odd_characters_are_shown() -> None:
    assert "\u202e" not in ngram("\u202eabc")
    assert "\\u{202e}" in ngram("\u202eabc")
    assert ngram("a ␣b").count('class="tok"') == 2
    assert "empty" in ngram("")
    assert "…" in ngram("x" * 1000)


def test_embedded_json_cannot_end_its_element() -> None:
    text = embed_json({"a": "</script><!--&\u2028"}, "x")
    inner = text[text.index(">") + 1 : text.rindex("<")]
    assert not set("<>&\u2028") & set(inner)
    assert json.loads(inner) == {"a": "</script><!--&\u2028"}


def test_tags_escape_text_and_attributes() -> None:
    element = ElementTree.fromstring(tag("p", '<b>&"', data_tip="\"'<&>\n", title=None))
    assert (element.text, element.get("data-tip")) == ('<b>&"', "\"'<&> ")
    assert escape("\ud800\x00\x1b\x9b\u202e\u2066\x7f") == "\ufffd" * 7
    assert escape("a\t\n\u200db") == "a\t\n\u200db"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("columns", [{"layer": 1}]),
        ("columns", "none"),
        ("growth", [{"order": 2, "tokens": [1, 2], "distinct": [1]}]),
        ("clean_heads", [{"layer": 1, "order": 2, "ngrams": []}]),
        ("locality", 5),
        ("row_hits", [{"layer": 1, "order": 2, "bins": [0], "rows": "x"}]),
        ("top_ngrams", [{"order": 2, "ngrams": [{"text": "a", "count": None}]}]),
        ("sources", {"names": ["a"], "tokens": []}),
    ],
)
def test_damaged_figures_are_refused_by_name(key: str, value: object) -> None:
    document = full_document() | {key: value}
    with pytest.raises(ArtifactError, match="cannot be drawn"):
        rendered(document)


def test_a_page_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write(full_document(), path)
    before = path.read_bytes()
    with pytest.raises(OutputError):
        write(full_document() | {"tokens": 9}, path)
    assert path.read_bytes() == before
    write(full_document() | {"tokens": 9}, path, force=True)
    assert path.read_bytes() != before
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_every_chart_has_its_data_its_numbers_and_its_buttons() -> None:
    page = page_of(full_document())
    charts = [chart for view in page.views for chart in charts_of(view.parts)]
    text = render(page)
    assert len(charts) > 10
    assert json.loads(embedded(text, "engram-charts")) == json.loads(
        json.dumps([chart_data(chart) for chart in charts])
    )
    for chart in charts:
        figure = text.split(f'id="{chart.name}"')[1].split("</figure>")[0]
        assert '<div class="plot"></div>' in figure
        assert figure.count("<tr>") == len(numbers_of(chart).rows) + 1
        for kind in ("csv", "svg"):
            assert f'data-save="{kind}"' in figure
    assert "<noscript>" in text


def test_a_page_without_charts_has_no_library() -> None:
    found = page_of(full_document())
    bare = replace(found, views=tuple(v for v in found.views if not charts_of(v.parts)))
    text = render(bare)
    assert bare.views
    assert "d3js" not in text
    assert "engram-charts" not in text
    assert len(text) < 200_000 < len(render(found)) < 2_000_000


def test_what_is_vendored_is_what_its_notice_says() -> None:
    """The files of other projects are theirs to the byte, and their licences are with them."""
    assets = files("engram_cli.report").joinpath("assets")
    notice = json.loads(assets.joinpath("vendored.json").read_text(encoding="utf-8"))
    scripts = {each.name for each in assets.iterdir() if each.name.endswith(".min.js")}
    assert {each["file"] for each in notice} == scripts
    for each in notice:
        text = assets.joinpath(each["file"]).read_bytes()
        assert hashlib.sha256(text).hexdigest() == each["sha256"]
        assert each["version"] in text[:200].decode()
        assert b"</script" not in text
        licence = assets.joinpath(each["license_file"]).read_text(encoding="utf-8")
        assert "Permission to use, copy, modify" in licence


def test_texts_of_two_colours_have_a_legend() -> None:
    """Values below 0 have another class, which is underlined too; pieces and titles are escaped."""
    shades = Shades(
        pieces=("<b>", " the", "", "x"),
        shades=(1.0, 0.04, -0.31, -1.0),
        notes=('"', "falls", "rises", "rises"),
        title="<i>a.txt</i>",
        note="in all",
        legend=((1.0, "falls"), (-1.0, "rises & underlined")),
    )
    view = View(name="text", title="Text", lead="", parts=(shades,))
    page = Page(kicker="", heading="", title="", facts=(), views=(view,), data={})
    text = render(page)
    read = Reader(text)
    assert "b" in read.elements  # the title of the figure, not the piece
    assert read.elements["b"] == 1
    assert "i" in read.elements
    classes = [part.split('"')[0] for part in text.split('class="tok ')[1:]]
    assert classes == ["k10", "k0", "n3", "n10"]
    assert "&lt;i&gt;a.txt&lt;/i&gt;" in text
    assert text.count('class="key ') == 2
    assert "rises &amp; underlined" in text
    assert 'data-tip="&quot;"' in text
    assert 'tabindex="0"' in text.split('class="shaded"')[1][:40]
