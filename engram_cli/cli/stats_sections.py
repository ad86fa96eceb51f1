"""Prints further results of hash-stats: clean heads, n-grams, sources."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.stats.collisions import ColumnStats, OrderStats

_SHOWN_NGRAMS = 10
_SHOWN_ROWS = 3
_SHOWN_SOURCES = 9
_WITH_ERRORS = 4  # sources whose matrix has room for errors
_NAME = 28


class Figured(Protocol):
    """Counted statistics, from hash-stats or from a folder."""

    @property
    def tokens(self) -> int:
        """The number of counted tokens."""

    @property
    def orders(self) -> tuple[OrderStats, ...]:
        """Results per order."""

    @property
    def columns(self) -> tuple[ColumnStats, ...]:
        """Results per layer, order and head."""

    @property
    def sections(self) -> dict[str, Any]:
        """The sections: further keys of stats.json."""


def clean_heads_part(result: Figured) -> RenderableType:
    """Return the table of clean heads, one row per layer and order."""
    from engram_cli.cli.render import grid, percent

    rows = []
    for entry in result.sections["clean_heads"]:
        heads = len(entry["ideal"]) - 1
        rows.append(
            (
                f"{entry['layer']}",
                f"{entry['order']}",
                f"{_mean(entry['ngrams']):.2f} of {heads}",
                f"{_mean(entry['ideal']):.2f}",
                percent(entry["ngrams"][0], 1),
                percent(entry["ideal"][0], 1),
                percent(entry["ngrams"][-1], 1),
                percent(entry["ideal"][-1], 1),
                f"{_mean(entry['occurrences']):.2f}",
                percent(entry["purity"], 1),
            )
        )
    names = (
        *(">layer", ">order", ">clean heads", ">ideal", ">none clean", ">ideal"),
        *(">all clean", ">ideal", ">by use", ">purity"),
    )
    return grid("Clean heads: no other n-gram uses the n-gram's row", names, rows)


def chosen_parts(result: Figured) -> list[RenderableType]:
    """Return the optional parts: raw ids compared with compressed ones, and sources."""
    parts: list[RenderableType] = []
    if "uncompressed" in result.sections:
        parts.append(_uncompressed(result))
    if "sources" in result.sections:
        parts += _sources(result.sections["sources"])
    return parts


def _uncompressed(result: Figured) -> RenderableType:
    """Return distinct n-grams and shared rows (means over layers and heads), per order."""
    from engram_cli.cli.render import grid, percent

    raw = result.sections["uncompressed"]
    rows = []
    for ours, theirs in zip(result.orders, raw["orders"], strict=True):
        own = [column for column in result.columns if column.order == ours.order]
        other = [column for column in raw["columns"] if column["order"] == ours.order]
        rows.append(
            (
                f"{ours.order}",
                _give_or_take(theirs["distinct"], theirs["distinct_error"]),
                _give_or_take(ours.distinct, ours.distinct_error),
                percent(1.0 - ours.distinct / max(theirs["distinct"], 1.0), 1),
                percent(sum(c["shared"] for c in other) / len(other), 1),
                percent(sum(c.shared for c in own) / len(own), 1),
                _by_use(other),
                _by_use([asdict(column) for column in own]),
            )
        )
    names = (
        *(">order", ">distinct, raw ids", ">compressed", ">fewer", ">sharing, raw ids"),
        *(">compressed", ">by use, raw ids", ">compressed"),
    )
    return grid("Effect of compressing the vocabulary", names, rows)


def _give_or_take(value: float, error: float) -> str:
    """Return a number with its standard error, if it has one."""
    return f"{value:,.0f}" + (f" ±{error:,.0f}" if error else "")


def _sources(section: dict[str, Any]) -> list[RenderableType]:
    """Return one matrix per order: the occurrences whose n-gram another source has too."""
    from engram_cli.cli.plain import one_line
    from engram_cli.cli.render import grid

    names = [one_line(name) for name in section["names"]]
    shown = range(min(len(names), _SHOWN_SOURCES))
    parts: list[RenderableType] = []
    for entry in section["overlap"]:
        rows = [
            (
                f"{i + 1}",
                names[i] if len(names[i]) <= _NAME else "…" + names[i][1 - _NAME :],
                f"{section['tokens'][i]:,}",
                *(_known(entry, i, j, errors=len(shown) <= _WITH_ERRORS) for j in shown),
            )
            for i in shown
        ]
        more = len(names) - len(shown)
        title = f"{entry['order']}-grams: % of occurrences whose n-gram source"
        most = max(entry["share_error"][i][j] for i in shown for j in shown)
        if most and len(shown) > _WITH_ERRORS:
            title += f", standard error up to {100 * most:.1f}"
        title += f" ({more} more sources in stats.json)" if more else ""
        columns = (">", "source", ">tokens", *(f">{j + 1}" for j in shown))
        parts.append(grid(title, columns, rows))
    return parts


def _known(entry: dict[str, Any], i: int, j: int, *, errors: bool) -> str:
    """Return a cell of the matrix."""
    from engram_cli.cli.render import error

    share, spread = entry["share"][i][j], entry["share_error"][i][j]
    return f"{100 * share:.1f}{error(spread, 1)}" if errors and i != j else f"{100 * share:.0f}"


def ngram_parts(result: Figured) -> list[RenderableType]:
    """Return the most frequent n-grams of each order, and rows that frequent n-grams share."""
    from engram_cli.cli.render import grid, times

    best = [
        (f"{entry['order']}", each["text"], times(each["count"], each["exact"]))
        for entry in result.sections["top_ngrams"]
        for each in entry["ngrams"][:_SHOWN_NGRAMS]
    ]
    excess = max(entry["excess"] for entry in result.sections["top_ngrams"])
    partly = any(not (e["exact"] or e["positions"]) for e in result.sections["top_ngrams"])
    title = "Most frequent n-grams" + (" of the sample" if partly else "")
    title += f" (≤: upper bound, too high by up to {excess:,} in 19 of 20 cases)" if excess else ""
    worst = [
        (
            f"{row['layer']}",
            f"{row['order']}",
            f"{row['head']}",
            f"{row['row']:,}",
            f"{row['hits']:,}",
            "\n".join(
                f"{times(each['count'], each['exact'])} x {each['text']}" for each in row["ngrams"]
            ),
        )
        for row in _first_of_each(result.sections["worst_rows"])
    ]
    names = (">layer", ">order", ">head", ">row", ">hits", "n-grams on it")
    return [
        grid(title, (">order", "n-gram", ">count"), best),
        grid("Rows that frequent n-grams share", names, worst),
    ]


def _first_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first rows of each layer and order."""
    met: dict[tuple[int, int], int] = {}
    first = []
    for row in rows:
        key = row["layer"], row["order"]
        met[key] = met.get(key, 0) + 1
        if met[key] <= _SHOWN_ROWS:
            first.append(row)
    return first


def _by_use(columns: list[dict[str, Any]]) -> str:
    """Return the mean share and the mean error of columns, which use the same sample."""
    from engram_cli.cli.render import error, percent

    share = sum(column["shared_occurrences"] for column in columns) / len(columns)
    spread = sum(column["shared_occurrences_error"] for column in columns) / len(columns)
    return percent(share, 1) + error(spread, 1)


def _mean(shares: list[float]) -> float:
    return sum(heads * share for heads, share in enumerate(shares))
