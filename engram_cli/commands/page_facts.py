"""Says on a page of statistics where they come from: corpus, tokenizer, command and date.

stats.json names none of them: equal corpora give equal bytes, however they are named. What counts
a corpus knows its names; who draws a finished folder knows what lies next to it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.corpus import HashStatsRequest
from engram_cli.commands.requests.update_stats import UpdateStatsRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import EngramError
from engram_cli.files import address_of
from engram_cli.numbers import counted
from engram_cli.stats import DOCUMENT
from engram_cli.stats.stats_io import Statistics
from engram_cli.vocab.parquet import read_about

Facts = tuple[tuple[str, str], ...]
_NAMED = 3  # sources
# The fields of a request that change no figure, or that are not options of their own.
_SILENT = frozenset(
    (
        *("sources", "geometry", "vocab", "out", "force", "workspace", "report", "threads"),
        *("restart", "checkpoint_seconds", "tokenizer", "encoder", "engine", "ray_address"),
    )
)


def counted_facts(request: HashStatsRequest, tokenizer: Path | None) -> Facts:
    """Return the facts of a corpus that was just counted, by the names that the request gave."""
    sources = list(map(str, request.sources))
    return (
        ("Corpus", corpus_name(sources)),
        ("Tokenizer", "none: the corpus holds token ids" if tokenizer is None else str(tokenizer)),
        ("Command", _command(sources, [*_options(request.geometry), *_flags(request)])),
    )


def merged_facts(parts: Sequence[Path]) -> Facts:
    """Return the facts of statistics that were merged."""
    names = [_quoted(str(part)) for part in parts]
    return (
        ("Corpus", f"that of {', '.join(map(str, parts))}"),
        ("Command", f"engram hash-stats --merge {' '.join(names)}"),
    )


def updated_facts(request: UpdateStatsRequest) -> Facts:
    """Return the facts of statistics that were changed by documents."""
    said, options = f"that of {request.to}", [f"--to {_quoted(str(request.to))}"]
    for name, word, sources in (
        ("add", "with", request.add),
        ("remove", "without", request.remove),
    ):
        if sources:
            said += f", {word} {corpus_name(list(map(str, sources)))}"
            options += [f"--{name} {_quoted(str(each))}" for each in sources]
    return (("Corpus", said), ("Command", _command(list(map(str, request.sources)), options)))


def stored_facts(statistics: Statistics) -> Facts:
    """Return the facts of a statistics folder, which keeps no names."""
    corpus = statistics.document.get("corpus") or {}
    files = corpus.get("files") if isinstance(corpus, dict) else None
    said = f"{counted(files, 'file')}; " if isinstance(files, int) else ""
    options: list[str] = []
    with suppress(EngramError):  # a layout of another program's files has no options
        options = list(_options(Geometry.from_layout(statistics.layout)))
    if statistics.joined:
        options.append("--join-documents")
    return (
        ("Corpus", f"{said}statistics keep no names"),
        ("Tokenizer", _tokenizer(statistics)),
        ("Command", _command(["CORPUS"], options)),
    )


def counted_on(statistics: Statistics) -> Facts:
    """Return the date of a statistics folder: that of its stats.json, in UTC, if it is here."""
    if address_of(statistics.path) is not None:
        return ()
    try:
        changed = (statistics.path / DOCUMENT).stat().st_mtime
    except OSError:
        return ()
    day = datetime.fromtimestamp(changed, UTC)
    return (("Date", f"{day:%Y-%m-%d}"),)


def corpus_name(sources: Sequence[str]) -> str:
    """Return what a corpus is called: its sources, or the folder of many files."""
    if len(sources) <= _NAMED:
        return ", ".join(sources)
    if not any(address_of(source) for source in sources):
        return f"{len(sources):,} files in {os.path.commonpath(map(os.path.abspath, sources))}"
    return f"{', '.join(sources[:_NAMED])} and {len(sources) - _NAMED:,} more"


def _command(sources: Sequence[str], options: Sequence[str]) -> str:
    many = len(sources) > _NAMED
    named = [_quoted(source) for source in (sources[:1] if many else sources)]
    more = ["..."] if many else []
    return " ".join(["engram hash-stats", *named, *more, *options])


def _options(geometry: Geometry) -> Iterator[str]:
    for name, value in geometry.given.items():
        yield f"--{name.replace('_', '-')} {_value(value)}"


def _flags(request: HashStatsRequest) -> Iterator[str]:
    """Yield the options that differ from their defaults."""
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name in _SILENT or field.default is MISSING or value == field.default:
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        else:
            yield f"--{name} {_value(value)}"


def _value(value: Any) -> str:
    """Return an option's value; sizes that are equal for all orders are one size."""
    if not isinstance(value, tuple):
        return _quoted(str(value))
    same = len(value) > 1 and len(set(value)) == 1
    return _quoted(",".join(map(str, value[:1] if same else value)))


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _tokenizer(statistics: Statistics) -> str:
    """Return the tokenizer of the vocabulary next to the folder, or that vocabulary's digest."""
    digest = statistics.layout.vocab_digest
    if digest is None:
        return "none: raw token ids are hashed"
    about: dict[str, Any] = {}
    if address_of(statistics.path) is None:
        nearby = Workspace(statistics.path.absolute().parent).vocab
        with suppress(EngramError):
            about = read_about(nearby) if nearby.is_file() else {}
    if about.get("vocab_digest") == digest and about.get("source"):
        return str(about["source"])
    return f"not named; vocabulary {digest}"
