"""inspect: an artifact in; what it is, what it must match, and what its rows hold out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.commands.artifact import Artifact, Companions, Kind, find_artifact, half_built
from engram_cli.commands.inspect_facts import (
    About,
    Digest,
    about_bundle,
    about_half_built,
    about_statistics,
    about_table,
    about_vocabulary,
)
from engram_cli.commands.inspect_rows import Columns, HotRow, LayerRows, NormBins, inspect_rows
from engram_cli.commands.probe import ProbeRequest, ProbeResult, probe
from engram_cli.commands.processors import processors
from engram_cli.errors import IncompleteError, InputError
from engram_cli.formats.bundle import read_bundle
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import SILENT, Progress
from engram_cli.report.place import check_page
from engram_cli.stats.stats_io import read_stats
from engram_cli.table.attributes import PARTIAL_SUFFIX
from engram_cli.table.store import open_table


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectRequest:
    """What to inspect.

    `stats`, `vocab`: None for those that lie next to it and belong to it. `hottest`: rows listed of
    each order. `rows`: read the rows too; without it only what describes them. `probe`: ask the
    table what it knows of a text. `report`: a page to draw of it all. `threads` None is one a
    processor.
    """

    path: Path
    stats: Path | None = None
    vocab: Path | None = None
    hottest: int = 5
    rows: bool = True
    probe: ProbeRequest | None = None
    report: Path | None = None
    force: bool = False
    folder: Path = Path()
    threads: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.hottest <= 10:
            raise InputError(f"{self.hottest} hottest rows", "give 0 to 10")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutColumn:
    """A column of the layout: its head's rows begin at table row `offset`, `modulus` of them."""

    layer: int
    order: int
    head: int
    modulus: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectResult:
    """What lies at the path. `facts` are for people; everything else is what they are made from.

    `complete` is False for a half-built table, of which no more than `facts` is known.
    `multipliers`: by layer, as strings, since they exceed 53 bits. `columns`, `norms`, `layers` and
    `hottest` are empty where no rows were read, `probe` is None where nothing was asked.
    """

    path: Path
    kind: Kind
    complete: bool
    facts: tuple[tuple[str, str], ...]
    digests: tuple[Digest, ...]
    files: int
    stored_bytes: int
    scheme: str | None = None
    multipliers: tuple[tuple[int, tuple[str, ...]], ...] = ()
    layout: tuple[LayoutColumn, ...] = ()
    columns: tuple[Columns, ...] = ()
    norms: tuple[NormBins, ...] = ()
    layers: tuple[LayerRows, ...] = ()
    hottest: tuple[HotRow, ...] = ()
    probe: ProbeResult | None = None
    stats: Path | None = None
    read_bytes: int = 0
    seconds: float = 0.0
    report: Path | None = None


def inspect(request: InspectRequest, progress: Progress = SILENT) -> InspectResult:
    """Say what an artifact is and what its rows hold; constant memory, one pass over the rows.

    Raises InputError if nothing of engram is at the path, ArtifactError for damage, OutputError
    for a report that cannot be written, and as `probe`.
    """
    if request.report is not None:
        check_page(
            request.report,
            request.force,
            option="--report",
            inputs=(request.path, request.stats, request.vocab),
            artifacts=(request.path,),
        )
    found = find_artifact(request.path)
    if request.probe is not None and found.kind is not Kind.TABLE:
        raise InputError(f"cannot probe {found.kind}", "--probe needs a table")
    if found.kind is Kind.TABLE and (
        half_built(found.path) or found.path.name.endswith(PARTIAL_SUFFIX)
    ):
        return _result(found, about_half_built(found.path), complete=False)
    result = _INSPECTORS[found.kind](found, request, progress)
    if request.report is not None:
        from engram_cli.commands.inspect_page import write_inspection

        write_inspection(result, found.path.name, request.report, force=request.force)
    return result


def _vocabulary(found: Artifact, request: InspectRequest, progress: Progress) -> InspectResult:
    return _result(found, about_vocabulary(found.path), report=request.report)


def _table(found: Artifact, request: InspectRequest, progress: Progress) -> InspectResult:
    try:
        table = open_table(found.path)
    except IncompleteError:
        return _result(found, about_half_built(found.path), complete=False)
    companions = _companions(found, request)
    about = about_table(table, companions)
    # First, since what it needs may be wrong.
    known = None if request.probe is None else probe(request.probe, progress)
    rows = _rows(found, request, companions, progress)
    return _result(found, about, table.layout, report=request.report, probe=known, **rows)


def _bundle(found: Artifact, request: InspectRequest, progress: Progress) -> InspectResult:
    bundle = read_bundle(found.path)
    companions = _companions(found, request)
    about = about_bundle(bundle, companions)
    rows = _rows(found, request, companions, progress)
    return _result(found, about, bundle.spec.layout, report=request.report, **rows)


def _statistics(found: Artifact, request: InspectRequest, progress: Progress) -> InspectResult:
    statistics = read_stats(found.path)
    companions = _companions(found, request)
    about = about_statistics(statistics, companions)
    rows = _rows(found, request, companions, progress)
    return _result(found, about, statistics.layout, report=request.report, **rows)


def _rows(
    found: Artifact, request: InspectRequest, companions: Companions, progress: Progress
) -> dict[str, Any]:
    if not request.rows:
        return {}
    threads = request.threads or processors()
    return inspect_rows(
        found, companions, hottest=request.hottest, threads=threads, progress=progress
    )


def _companions(found: Artifact, request: InspectRequest) -> Companions:
    return Companions(
        artifact=found.path, folder=request.folder, stats=request.stats, vocab=request.vocab
    )


def _result(
    found: Artifact,
    about: About,
    layout: HashLayout | None = None,
    *,
    complete: bool = True,
    **rows: Any,
) -> InspectResult:
    columns = () if layout is None else tuple(
        LayoutColumn(
            layer=entry.layer,
            order=layout.orders[column // layout.heads],
            head=column % layout.heads,
            modulus=modulus,
            offset=offset,
        )
        for entry in layout.layers
        for column, (modulus, offset) in enumerate(zip(entry.moduli, entry.offsets, strict=True))
    )  # fmt: skip
    return InspectResult(
        path=found.path,
        kind=found.kind,
        complete=complete,
        facts=about.facts,
        digests=about.digests,
        files=about.files,
        stored_bytes=about.stored_bytes,
        scheme=None if layout is None else layout.scheme,
        multipliers=() if layout is None else tuple(
            (entry.layer, tuple(map(str, entry.multipliers))) for entry in layout.layers
        ),
        layout=columns,
        **rows,
    )  # fmt: skip


_INSPECTORS = {
    Kind.TABLE: _table,
    Kind.BUNDLE: _bundle,
    Kind.VOCABULARY: _vocabulary,
    Kind.STATISTICS: _statistics,
}
