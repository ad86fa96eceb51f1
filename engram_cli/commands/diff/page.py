"""Draws a comparison: its result as views, and those as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from engram_cli.charts import Curve, LineChart, order_name, share_axis
from engram_cli.commands.diff.result import DiffResult, OrderNgrams, Side
from engram_cli.numbers import count, counted, percent
from engram_cli.report.page import write_page
from engram_cli.view import Cell, Column, Estimate, Page, Summary, Table, View

_CONCENTRATED = 0.1  # of the changed rows: where fewer have half of the change
_NOTED_CHANCE = 1e-9  # above it, a corpus may have n-grams on changed rows by chance


def write_diff(result: DiffResult, path: Path, *, force: bool) -> None:
    """Write what was found as one HTML page. Raises OutputError."""
    document = json.loads(json.dumps(asdict(result), default=str))
    for said in ("compare_seconds", "seconds", "report"):  # the same artifacts give the same page
        del document[said]
    names = [each.stacked(each.path.name) for each in (result.before, result.after)]
    page = Page(
        kicker="Engram · comparison",
        heading=f"What changed from {names[0]} to {names[1]}",
        title=f"Engram diff: {', '.join(names)}",
        facts=(("Rows", count(result.rows)), ("Changed", count(result.changed))),
        views=(_summary(result), *diff_views(result, more="are not listed")),
        data=document,
    )
    write_page(page, path, force=force)


def sentences(result: DiffResult) -> Iterator[str]:
    """Yield what matters first: whether anything changed, how it is spread, what it stands for."""
    if result.verdict == "equal":
        yield f"The values of all {count(result.rows)} rows are equal."
        return
    if result.within:
        yield (
            f"{counted(result.within, 'row')} of {count(result.rows)} differ by no more than the "
            f"codec's error ({dtypes(result)}): that is no change."
        )
    if result.verdict == "within":
        yield "Nothing else differs."
        return
    share = percent(result.changed / result.rows)
    yield f"{counted(result.changed, 'row')} of {count(result.rows)} changed ({share})."
    if result.half_rows is not None:
        spread = result.half_rows / result.changed
        kind = "concentrated" if spread < _CONCENTRATED else "diffuse"
        yield (
            f"The change is {kind}: half of it is in {counted(result.half_rows, 'row')} "
            f"({percent(spread)} of the changed ones)."
        )
    if result.from_norm is not None:
        yield (
            f"{counted(result.stand_out, 'row')} changed by a norm of {result.from_norm:.3g} or "
            "more, and the n-grams are those of these rows."
        )


def dtypes(result: DiffResult) -> str:
    """Return the dtypes of both sides, once if they are the same."""
    one, two = result.before.dtype, result.after.dtype
    return one if one == two else f"{one} and {two}"


def described_side(side: Side, path: str) -> str:
    """Return a side in a line; `path` as it is to be shown."""
    return f"{side.stacked(path)} ({side.format}, {side.dtype})"


def _summary(result: DiffResult) -> View:
    facts = [
        ("Before", described_side(result.before, str(result.before.path))),
        ("After", described_side(result.after, str(result.after.path))),
    ]
    if result.named_by is not None:
        facts.append(("N-grams from", result.named_by))
    text = " ".join(sentences(result))
    return View(name="summary", title="Summary", lead="", parts=(Summary(text, tuple(facts)),))


def diff_views(result: DiffResult, *, more: str) -> Iterator[View]:
    """Yield the views of a comparison: n-grams, heads, the most changed rows, their spread.

    `more`: what is said of n-grams that are not listed, after their number.
    """
    if result.changed:
        for each in result.ngrams:
            if each.rows:
                yield _ngrams(result, each, more)
    if result.changed or result.within:
        yield _heads(result)
    if result.most:
        yield _most(result)
    if len(result.change_shares) > 1:
        yield _spread(result)


def _ngrams(result: DiffResult, own: OrderNgrams, more: str) -> View:
    name = order_name(own.order)
    several = len(result.layers) > 1
    columns = [Column(name, "ngram"), Column("occurs"), Column("least change", "decimal", 3)]
    if several:
        columns.append(Column("layers", "text"))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            each.text,
            each.count if each.exact or own.dropped else Estimate(each.count, bound=True),
            each.norm,
            *((", ".join(map(str, each.layers)),) if several else ()),
        )
        for each in own.listed
    )
    which = "stand out" if result.from_norm is not None else "changed"
    notes = [f"{percent(own.explained / own.rows)} of {counted(own.rows, 'row')} explained"]
    if own.found > len(own.listed):
        notes.append(f"{count(own.found - len(own.listed))} more {more}")
    if own.dropped:
        notes.append("too many to count all: rare ones are missing, counts are at least so large")
    if own.by_chance > _NOTED_CHANCE:
        notes.append(f"any other n-gram is listed by chance with probability {own.by_chance:.2g}")
    return View(
        name=f"ngrams-{own.order}",
        title=f"Changed {name}",
        lead=f"The {name} whose rows {which} in all heads, the most frequent first. Least change: "
        "the norm of the difference of the row that changed least.",
        parts=(
            Table(
                f"{counted(own.found, name.removesuffix('s'))} whose rows {which} in all heads",
                tuple(columns),
                rows,
                note="; ".join(notes),
            ),
        ),
    )


def _heads(result: DiffResult) -> View:
    stand_out = result.from_norm is not None
    odd = any(each.not_finite for each in result.columns)
    columns = [
        *(Column("layer"), Column("order"), Column("head")),
        *(Column("rows"), Column("within error"), Column("changed"), Column("share", "percent")),
        *([Column("stand out")] if stand_out else []),
        *([Column("not finite")] if odd else []),
        *(Column("cosine", "decimal", 3), Column("change", "percent")),
        Column("largest change", "percent"),
    ]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(each.layer, each.order, each.head),
            *(each.rows, each.within, each.changed, each.changed / each.rows),
            *((each.stand_out,) if stand_out else ()),
            *((each.not_finite,) if odd else ()),
            *(each.cosine, each.relative, each.largest),
        )
        for each in result.columns
    )
    return View(
        name="heads",
        title="Heads",
        lead="Rows by layer, order and head. Cosine and change, the norm of the difference "
        "relative to the row before, are means over the changed rows.",
        parts=(Table("Rows by head", tuple(columns), rows),),
    )


def _most(result: DiffResult) -> View:
    columns = (
        *(Column("layer"), Column("order"), Column("head")),
        *(Column("row"), Column("norm", "decimal", 3), Column("change", "percent")),
        Column("cosine", "decimal", 3),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(each.layer, each.order, each.head),
            *(each.row, each.norm, each.relative, each.cosine),
        )
        for each in result.most
    )
    return View(
        name="rows",
        title="Most changed rows",
        lead="Norm: of the difference. Change: relative to the row before.",
        parts=(Table("Most changed rows", columns, rows, where="verbose"),),
    )


def _spread(result: DiffResult) -> View:
    chart = LineChart(
        name="spread",
        title="Share of the change in the most changed rows",
        description="How much of the change the most changed rows have.",
        x=share_axis("share of the changed rows, the most changed first", high=1.0),
        y=share_axis("share of the change", high=1.0),
        curves=(Curve("change", 0, result.change_shares),),
        note="The change of a row is the square of the norm of its difference.",
    )
    return View(
        name="spread",
        title="Concentrated or diffuse",
        lead="A steep curve: few rows have most of the change, as after edits of single facts. A "
        "flat one: many rows changed alike, as after training.",
        parts=(chart,),
        shown="page",
    )
