"""Prints growth and locality: how many rows are enough, how unevenly rows are used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.cli.stats_sections import Figured

_SHARING = (0.5, 0.1)
_HOT = (0.001, 0.01, 0.1, 0.2)
_CACHES = (0.01, 0.1)

NO_BREAK = "\N{NO-BREAK SPACE}"


def growth_parts(result: Figured) -> list[RenderableType]:
    """Return the n-grams of this corpus and of larger ones, and the rows they need."""
    from engram_cli.cli.render import grid, percent, quantity

    rows = []
    moduli = {(c.layer, c.order): c.rows for c in reversed(result.columns)}
    counted = {entry.order: entry for entry in result.orders}  # by more n-grams than the curve
    for entry in result.sections.get("growth", ()):
        if not entry["tokens"]:
            continue
        first = entry["occupied"][0]
        share = first["rows"][-1] / moduli[first["layer"], entry["order"]]
        now = {
            "factor": 1,
            "tokens": entry["tokens"][-1],
            "distinct": counted[entry["order"]].distinct,
            "error": counted[entry["order"]].distinct_error,
            "occupied": [{"layer": first["layer"], "share": share}],
        }
        for point in (now, *entry["extrapolated"]):
            distinct = point["distinct"]
            rows.append(
                (
                    f"{entry['order']}",
                    "this corpus" if point["factor"] == 1 else f"{point['factor']} times",
                    quantity(point["tokens"], "").strip(),
                    quantity(distinct, "").strip(),
                    percent(point["error"] / distinct, 1),
                    percent(point["occupied"][0]["share"], 1),
                    *(quantity(rows_for(distinct, share), "").strip() for share in _SHARING),
                )
            )
    names = (
        *(">order", "corpus", ">tokens", ">distinct n-grams", ">error", ">occupied"),
        *(f">rows, {share:.0%} share" for share in _SHARING),
    )
    if not rows:
        return []
    title = (
        "How many rows are enough: rows per head if this share of n-grams may share a row; errors "
    )
    title += "assume more documents of the same kind, other text adds more n-grams"
    return [grid(title, names, rows)]


def rows_for(distinct: float, share: float) -> float:
    """Return the rows with which, under an ideal hash, `share` of the n-grams share a row."""
    return max(distinct - 1.0, 0.0) / -math.log1p(-share)


def held_out_rows(result: Figured) -> list[tuple[str, str]]:
    """Return the line about held-out tokens; () if nothing was held out."""
    section = result.sections.get("locality")
    held = 0 if section is None else section["held_out_tokens"]
    if not held:
        return []
    share = held / (held + result.tokens)
    said = f"{held:,} tokens ({100 * share:.1f} %), looked up to measure hot rows, not counted;"
    return [("held out", f"{said} documents wholly inside them are not counted either")]


def locality_parts(result: Figured) -> list[RenderableType]:
    """Return what the hottest rows serve, and windows and caches."""
    from engram_cli.cli.render import grid

    section = result.sections.get("locality")
    if section is None:
        return []
    hot = [
        (f"{entry['layer']}", f"{entry['order']}", *(_hot(entry, share) for share in _HOT))
        for entry in section["hot"]
    ]
    names = (">layer", ">order", *(f">hottest {100 * share:g} % of rows" for share in _HOT))
    held = section["held_out_tokens"]
    note = f"; in brackets, of {held:,} held-out tokens" if held else ""
    parts: list[RenderableType] = [grid(f"Hot rows: % of look-ups they serve{note}", names, hot)]
    windows = {(w["layer"], w["order"], w["tokens"]): w for w in section["windows"]}
    lengths = sorted({length for _, _, length in windows})
    rows = [
        (
            f"{entry['layer']}",
            f"{entry['order']}",
            *(_window(windows.get((entry["layer"], entry["order"], n))) for n in lengths),
            *(_cache(entry, share) for share in _CACHES),
        )
        for entry in section["lru"]
    ]
    names = (
        *(">layer", ">order"),
        *(f">in {length:,} tokens" for length in lengths),
        *(f">LRU, {100 * share:g} % of rows" for share in _CACHES),
    )
    title = "Distinct rows in a window, and hit rates of LRU caches, in %, ± one standard error"
    return [*parts, grid(title, names, rows)]


def _hot(entry: dict[str, Any], share: float) -> str:
    at = entry["rows_share"].index(share)
    text = f"{100 * entry['counted'][at]:.1f}"
    return text if entry["held_out"] is None else f"{text} ({100 * entry['held_out'][at]:.1f})"


def _window(window: dict[str, Any] | None) -> str:
    if window is None:
        return ""
    return f"{100 * window['distinct_share']:.1f}{_give_or_take(window['error'])}"


def _cache(entry: dict[str, Any], share: float) -> str:
    """Return the hit rate of the cache nearest to a share of the rows; its rows in brackets."""
    from engram_cli.cli.render import quantity

    wanted = math.log(max(share * entry["cache_rows"][-1], 1.0))
    at = min(
        range(len(entry["cache_rows"])),
        key=lambda index: abs(math.log(entry["cache_rows"][index]) - wanted),
    )
    rows = quantity(entry["cache_rows"][at], "").strip().replace(" ", NO_BREAK)
    error = _give_or_take(entry["error"][at])
    return f"{100 * entry['hit_rate'][at]:.1f}{error}{NO_BREAK}({rows})"


def _give_or_take(error: float) -> str:
    """Return a standard error in %, or "" if the share is exact."""
    return f"{NO_BREAK}±{100 * error:.1f}" if error else ""
