"""inspect: an artifact in; what it is, what it must match, and what its rows hold out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engram_cli.commands.artifact import VOCABULARY, Artifact, Companions, find_artifact
from engram_cli.commands.inspect.result import InspectResult, LayoutColumn
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.reading import InspectRequest
from engram_cli.errors import EngramError, IncompleteError, InputError
from engram_cli.formats.base import Digest, Facts, header_bytes, stored_size
from engram_cli.formats.stored_layers import stored_layers
from engram_cli.hashing.layout import UNKNOWN_SCHEME, UNKNOWN_VOCABULARY, HashLayout
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.locate import count_read
from engram_cli.remote.path import is_remote
from engram_cli.report.place import check_page
from engram_cli.rows.source import RowSource
from engram_cli.sizes import processors


def inspect(request: InspectRequest, progress: Progress = SILENT) -> InspectResult:
    """Say what an artifact is and what its rows hold; constant memory, one pass over the rows or a
    sample of them.

    Raises InputError if nothing that is known is at the path, ArtifactError for damage, OutputError
    for a report that cannot be written, and as `probe`.
    """
    request = located(request)
    if request.report is not None:
        check_page(
            request.report,
            request.force,
            option="--report",
            inputs=(request.path, request.stats, request.vocab),
            artifacts=(request.path,),
        )
    found = find_artifact(request.path, request.shape)
    if request.probe is not None and found.kind != "table":
        raise InputError(f"cannot probe {found.kind}", "--probe needs a table")
    if found.kind == VOCABULARY:
        result = _vocabulary(found.path, request)
    else:
        try:
            source = found.open(tokenizer=request.tokenizer)
        except IncompleteError:
            if found.format.unfinished is None:
                raise
            facts, files, size = found.format.unfinished(found.path)
            return _result(found, facts, files=files, stored_bytes=size, complete=False)
        result = _rows(found, source, request, progress)
    if request.report is not None:
        from engram_cli.commands.inspect.page import write_inspection

        write_inspection(result, found.path.name, request.report, force=request.force)
    return result


def _rows(
    found: Artifact, source: RowSource, request: InspectRequest, progress: Progress
) -> InspectResult:
    companions = Companions(
        artifact=found.path, folder=request.folder, stats=request.stats, vocab=request.vocab
    )
    digests = _layout_digests(source.layout, companions)
    if source.digest is not None and found.format.shows_digest:
        own = Digest(name=found.kind, value=source.digest, must_match="names this content")
        digests = (own, *digests)
    facts, (files, size) = found.format.facts(source), stored_size(found.path)
    # First, since what it needs may be wrong.
    known = None
    if request.probe is not None:
        from engram_cli.commands.probe import probe

        known = probe(request.probe, progress)
    rows: dict[str, Any] = {}
    is_near = not found.format.foreign and not is_remote(found.path)
    if request.rows or (request.rows is None and is_near):
        threads = request.threads or processors()
        from engram_cli.commands.inspect.rows import inspect_rows  # with Numba's kernels

        rows = inspect_rows(
            source,
            companions,
            hottest=request.hottest,
            full=request.full,
            threads=threads,
            progress=progress,
        )
    if rows.get("stats") not in (None, found.path):  # they are read only if their layout is this
        digests = tuple(
            replace(each, must_match=f"{rows['stats']}", matches=True)
            if each.name == "layout"
            else each
            for each in digests
        )
    return _result(
        found,
        facts,
        None if source.layout.scheme == UNKNOWN_SCHEME else source.layout,
        digests=digests,
        files=files,
        stored_bytes=size,
        report=request.report,
        probe=known,
        foreign=found.format.foreign,
        layers=stored_layers(source, found.format.number),
        dialect=getattr(source, "dialect", None),
        checks=getattr(source, "checks", ()),
        read=count_read(found.path, header_bytes(source), rows.get("read_bytes", 0)),
        **rows,
    )


def _vocabulary(path: Path, request: InspectRequest) -> InspectResult:
    from engram_cli.vocab.parquet import read_about, read_map

    about, known = read_about(path), read_map(path)
    tokens = int((known.lookup >= 0).sum())
    facts = (
        ("token ids", f"{known.vocab_size:,}, {tokens:,} of them with a token"),
        ("compressed ids", f"{known.size:,} ({100 * (1 - known.size / tokens):.2f} % fewer)"),
        ("made from", str(about.get("source"))),
        ("made by", f"engram {about.get('tool_version')}"),
    )
    digests = (
        Digest(
            name="vocabulary",
            value=known.digest,
            must_match="layouts, statistics, tables and bundles made with it",
        ),
        Digest(
            name="tokenizer",
            value=str(about.get("tokenizer_digest")),
            must_match="SHA-256 of the tokenizer.json it was made from",
        ),
    )
    found = Artifact(path=path, kind=VOCABULARY)
    size = path.stat().st_size
    return _result(found, facts, digests=digests, files=1, stored_bytes=size, report=request.report)


def _result(
    found: Artifact,
    facts: Facts,
    layout: HashLayout | None = None,
    *,
    complete: bool = True,
    digests: tuple[Digest, ...] = (),
    **others: Any,
) -> InspectResult:
    entries = () if layout is None else layout.layers
    columns = tuple(
        LayoutColumn(
            layer=entry.layer,
            order=layout.orders[column // layout.heads],
            head=column % layout.heads,
            modulus=modulus,
            offset=offset,
        )
        for entry in entries
        for column, (modulus, offset) in enumerate(zip(entry.moduli, entry.offsets, strict=True))
        if layout is not None
    )
    return InspectResult(
        path=found.path,
        kind=found.kind,
        format=None if found.kind == VOCABULARY else found.kind,
        complete=complete,
        facts=tuple(facts),
        digests=digests,
        scheme=None if layout is None else layout.scheme,
        multipliers=tuple((entry.layer, tuple(map(str, entry.multipliers))) for entry in entries),
        layout=columns,
        **others,
    )


def _layout_digests(layout: HashLayout, companions: Companions) -> tuple[Digest, ...]:
    """Return the digests of a layout, compared with a vocabulary, given or found."""
    own = Digest(
        name="layout",
        value=layout.fingerprint,
        must_match="statistics, tables and bundles that go together",
    )
    if layout.vocab_digest == UNKNOWN_VOCABULARY:
        return ()
    if layout.vocab_digest is None:
        return (own,)
    place, matches = companions.vocabulary_place(), None
    try:
        if place is not None:
            from engram_cli.vocab.parquet import read_about

            matches = read_about(place).get("vocab_digest") == layout.vocab_digest
    except EngramError:
        matches = False
    where = "the vocabulary" if place is None else f"{place}"
    value = layout.vocab_digest
    return own, Digest(name="vocabulary", value=value, must_match=where, matches=matches)
