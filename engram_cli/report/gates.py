"""The page of a traced text: each token shaded by how far its gate opened, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from engram_cli.outputs import new_file
from engram_cli.report.markup import Html, tag, visible
from engram_cli.report.place import PAGE
from engram_cli.version import __version__

SHADES = 10  # the page's classes k0 to k10

_SINGLE = """
.page { grid-template-columns: minmax(0, 1fr); }
.ngram { font-size: 1rem; line-height: 2; }
.tok { background: none; margin: 0; padding: .1em .18em; }
""" + "".join(
    f".tok.k{i} {{ background: rgba(var(--shade), {0.05 + 0.06 * i:.2f}); }}\n" for i in range(11)
)

Figures = Sequence[tuple[str, Sequence[Sequence[float]], Sequence[float]]]


def write_gates(pieces: Sequence[str], layers: Figures, path: Path, *, force: bool = False) -> None:
    """Write the page for tokens `pieces` and layers of (name, gates [T][streams], strengths [T]).

    It opens offline and runs no script. Raises OutputError.
    """
    document = gates_page(pieces, layers)
    with new_file(path, PAGE, force=force) as part:
        part.write_text(document, encoding="utf-8")


def gates_page(pieces: Sequence[str], layers: Figures) -> str:
    """The page as text; equal figures give equal pages."""
    sections = []
    for layer, gates, strengths in layers:
        streams = len(gates[0])
        for stream in range(streams):
            name = layer[:1].upper() + layer[1:] + (f", stream {stream}" if streams > 1 else "")
            values = [row[stream] for row in gates]
            sections.append(_section(name, pieces, values, strengths))
    title = "Where the memory speaks"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("meta", name_="generator", content=f"engram {__version__}"),
        tag("title", title),
        tag("style", Html(_style() + _SINGLE)),
    )  # fmt: skip
    masthead = tag(
        "header",
        tag("p", f"Engram {__version__} · gates of a text", class_="kicker"),
        tag("h1", title),
        tag("p", f"{len(pieces):,} tokens. The darker a token, the further its gate let the memory "
            "in; the tables have the figures, and what was added as a share of the hidden state.",
            class_="lead"),
        class_="masthead",
    )  # fmt: skip
    body = tag("body", masthead, tag("div", tag("main", *sections), class_="page"))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _style() -> str:
    sheet = files("engram_cli.report").joinpath("assets", "page.css")
    return sheet.read_text(encoding="utf-8")


def shade(value: float, low: float, high: float) -> int:
    """0 to 10: where `value` lies between the least and the greatest of its layer."""
    return 0 if high <= low else round(SHADES * (value - low) / (high - low))


def _section(
    name: str, pieces: Sequence[str], gates: Sequence[float], strengths: Sequence[float]
) -> Html:
    low, high = min(gates), max(gates)
    words = [
        tag("span", visible(piece) if piece else "·", class_=f"tok k{shade(gate, low, high)}",
            title=f"gate {gate:.3f}, added {share:.1%}")
        for piece, gate, share in zip(pieces, gates, strengths, strict=True)
    ]  # fmt: skip
    mean = sum(gates) / len(gates)
    rows = [
        tag("tr", tag("td", tag("code", visible(piece) if piece else "·")),
            tag("td", f"{gate:.3f}", class_="num"), tag("td", f"{share:.2%}", class_="num"))
        for piece, gate, share in zip(pieces, gates, strengths, strict=True)
    ]  # fmt: skip
    header = tag("tr", tag("th", "token"), tag("th", "gate", class_="num"),
                 tag("th", "added", class_="num"))  # fmt: skip
    return tag(
        "section",
        tag("h2", name),
        tag("p", f"Gates from {low:.3f} to {high:.3f}, mean {mean:.3f}.", class_="lead"),
        tag("p", tag("code", *words, class_="ngram")),
        tag("details", tag("summary", "Figures"),
            tag("div", tag("table", tag("thead", header), tag("tbody", *rows)), class_="scroll")),
    )  # fmt: skip
