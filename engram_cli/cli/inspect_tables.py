"""Prints inspect's results: facts, digests, the layout, heads, hot rows, duplicate rows."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from engram_cli.cli.probe_table import probe_parts
from engram_cli.cli.render import facts, grid, percent, quantity, times
from engram_cli.cli.terminal import shown_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.inspect import InspectResult
    from engram_cli.commands.inspect_rows import Columns, NormBins
    from engram_cli.table.scan.duplicates import Duplicates

_LEVELS = " ▁▂▃▄▅▆▇█"
_BARS = 40


def inspect_parts(result: InspectResult) -> list[RenderableType]:
    """Return the whole result."""
    size = f"{quantity(result.stored_bytes, 'bytes')} ({result.stored_bytes:,} bytes)"
    lines: list[tuple[str, str | Text]] = [
        ("path", shown_path(result.path)),
        *result.facts,
        ("on disk", f"{size}, {result.files:,} files"),
    ]
    if result.stats is not None and result.kind != "statistics":
        lines.append(("statistics", shown_path(result.stats)))
    if result.read_bytes:
        pace = quantity(result.read_bytes / max(result.seconds, 1e-9), "bytes")
        lines.append(("read", f"{quantity(result.read_bytes, 'bytes')} of rows, {pace}/s"))
    if result.report is not None:
        lines.append(("report", shown_path(result.report)))
    parts: list[RenderableType] = [facts(str(result.kind).capitalize(), lines)]
    if result.digests:
        parts.append(_digests(result))
    parts += _layers(result)
    parts += [_norms(own) for own in result.norms]
    if result.hottest:
        parts.append(_hottest(result))
    if result.layers:
        parts.append(_duplicates(result))
        parts += _twins(result)
    if result.probe is not None:
        parts += probe_parts(result.probe)
    return parts


def _digests(result: InspectResult) -> RenderableType:
    signs = {True: Text("yes", "green"), False: Text("no", "bold red"), None: Text("")}
    rows = [
        (each.name, _first_digits(each.value), each.must_match, signs[each.matches])
        for each in result.digests
    ]
    return grid("Digests", ("of", "digest", "must match", "matches"), rows)


def _first_digits(digest: str) -> str:
    """Return the beginning of a digest; --json has all of it."""
    return digest if len(digest) <= 27 else f"{digest[:23]}..."


def _layers(result: InspectResult) -> list[RenderableType]:
    """Return one table per layer: its columns, and their contents if rows were read."""
    known = {(each.layer, each.order, each.head): each for each in result.columns}
    multipliers = dict(result.multipliers)
    parts: list[RenderableType] = []
    for layer, columns in groupby(result.layout, key=lambda column: column.layer):
        rows = [
            (
                f"{column.order}",
                f"{column.head}",
                f"{column.modulus:,}",
                f"{column.offset:,}",
                *_cells(known.get((layer, column.order, column.head))),
            )
            for column in columns
        ]
        heads = (">n", ">head", ">rows (modulus)", ">first row", *_names(result))
        said = " ".join(multipliers[layer])
        parts.append(grid(f"Layer {layer}, multipliers {said}", heads, rows))
    return parts


def _names(result: InspectResult) -> tuple[str, ...]:
    if not result.columns:
        return ()
    some = result.columns[0]
    hits = (">hit", ">most") if some.hits is not None else ()
    return (*hits, ">zero", ">bad", ">norm", ">least", ">most") if some.mean is not None else hits


def _cells(column: Columns | None) -> tuple[str, ...]:
    if column is None:
        return ()
    cells: tuple[str, ...] = ()
    if column.hit_rows is not None and column.max_hits is not None:
        cells = (percent(column.hit_rows / column.rows, 1), f"{column.max_hits:,}")
    if column.mean is None:
        return cells
    return (
        *cells,
        f"{column.zero:,}",
        f"{column.not_finite:,}",
        f"{column.mean:.3g}",
        f"{column.least:.3g}",
        f"{column.most:.3g}",
    )


def _norms(bins: NormBins) -> RenderableType:
    """Return a line of bars, one per bin, or one per several bins if there are many."""
    wide = -(-len(bins.rows) // _BARS)
    sums = [sum(bins.rows[at : at + wide]) for at in range(0, len(bins.rows), wide)]
    most = max(sums)
    bars = "".join(_LEVELS[0 if rows == 0 else max(1, round(8 * rows / most))] for rows in sums)
    return Text.assemble(
        (f"Norms, layer {bins.layer}, {bins.order}-grams ", "bold"),
        f"{bins.low[0]:.3g} ",
        (bars, "cyan"),
        f" {bins.low[-1]:.3g}",
    )


def _hottest(result: InspectResult) -> RenderableType:
    rows = []
    for each in result.hottest:
        ngrams = ", ".join(
            f"{ngram.text} ({times(ngram.count, ngram.exact)})" for ngram in each.ngrams
        )
        rest = each.known - len(each.ngrams)
        rows.append(
            (
                f"{each.layer}",
                f"{each.order}",
                f"{each.head}",
                f"{each.row:,}",
                f"{each.hits:,}",
                (ngrams or "none known") + (f" and {rest:,} more" if rest else ""),
            )
        )
    names = (">layer", ">n", ">head", ">row", ">hits", "known n-grams (count)")
    return grid("Hottest rows", names, rows)


def _duplicates(result: InspectResult) -> RenderableType:
    rows = [
        (
            f"{each.layer}",
            f"{each.duplicates.rows:,}",
            _distinct(each.duplicates),
            percent(each.duplicates.twin_share),
        )
        for each in result.layers
    ]
    names = (">layer", ">rows with values", ">distinct contents", ">equal to another row")
    return grid("Duplicate rows", names, rows)


def _distinct(found: Duplicates) -> str:
    if found.distinct_error == 0:
        return f"{found.distinct:,.0f}"
    return f"{found.distinct:,.0f} ± {found.distinct_error:,.0f}"


def _twins(result: InspectResult) -> list[RenderableType]:
    rows = [
        (f"{each.layer}", f"{twins.rows:,}", f"{twins.first:,}", f"{twins.second:,}")
        for each in result.layers
        for twins in each.duplicates.twins
    ]
    if not rows:
        return []
    return [
        grid(
            "Largest groups of duplicate rows", (">layer", ">equal rows", ">row", ">and row"), rows
        )
    ]
