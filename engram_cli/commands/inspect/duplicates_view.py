"""Draws which rows have equal contents, and says among which rows they were looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_cli.commands.inspect.result import InspectResult
from engram_cli.numbers import count
from engram_cli.view import Cell, Estimate, Table, View, counts, percents

if TYPE_CHECKING:
    from engram_cli.table.scan.contents import Duplicates


def duplicates_view(result: InspectResult) -> View:
    """Return how many rows have equal contents, and the largest groups of them."""
    among = _among(result)
    rows = tuple(
        (
            *(each.layer, own.rows, Estimate(own.distinct, own.distinct_error)),
            _twin_share(own),
        )
        for each in result.duplicates
        for own in (each.duplicates,)
    )
    twins = tuple(
        (each.layer, twin.rows, twin.first, twin.second)
        for each in result.duplicates
        for twin in each.duplicates.twins
    )
    columns = (
        *counts("layer", "rows with values", "distinct contents"),
        *percents("equal to another row"),
    )
    parts = [Table(f"Duplicate rows {among}", columns, rows)]
    if twins:
        names = counts("layer", "equal rows", "row", "and row")
        parts.append(Table(f"Largest groups of duplicate rows {among}", names, twins))
    return View(
        name="duplicates",
        title="Duplicate rows",
        lead=f"Rows with the same contents, {among}. {_share_said(result)}Trained rows "
        "differ: duplicates are rows that training never moved apart.",
        parts=tuple(parts),
    )


def _twin_share(own: Duplicates) -> Cell:
    if own.bound:  # a bound of all rows says nothing
        return Estimate(own.twin_share, bound=True) if own.twin_share < 1 else None
    return Estimate(own.twin_share, own.twin_share_error)


def _among(result: InspectResult) -> str:
    """Say among which rows duplicates were looked for, layer by layer where they differ."""
    said: dict[str, list[str]] = {}
    for each in result.duplicates:
        among = "among all rows"
        if each.duplicates.bound:
            among = "among the rows that were read"
        elif each.duplicates.contents_read < 1:
            among = f"among 1 in {count(1 / each.duplicates.contents_read)} row contents"
        said.setdefault(among, []).append(str(each.layer))
    if len(said) == 1:
        return next(iter(said))
    return ", ".join(f"{among} (layer {', '.join(layers)})" for among, layers in said.items())


def _share_said(result: InspectResult) -> str:
    """Say what the shares are that are not counted."""
    if any(each.duplicates.bound for each in result.duplicates):
        return (
            "The share is that of all rows that may have one (95 % confidence), - where the sample "
            "rules out no share. "
        )
    if any(each.duplicates.contents_read < 1 for each in result.duplicates):
        return (
            "Contents are chosen by a hash, each with all of its rows; figures with \u00b1 are "
            "estimates for all rows, and larger groups may not be among those listed. "
        )
    return ""
