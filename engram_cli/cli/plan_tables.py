"""Prints a plan: the table, expected use of its rows, where they fit, and alternatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from engram_cli.cli.render import facts, grid, percent, quantity
from engram_cli.cli.terminal import shown_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.plan.command import PlanResult
    from engram_cli.commands.plan.corpus import HotShare
    from engram_cli.commands.plan.sizes import Alternative
    from engram_cli.table.planning.batches import BatchShare


def plan_parts(result: PlanResult) -> list[RenderableType]:
    """Return the whole plan."""
    parts = [facts("Plan", _facts(result)), _expected(result)]
    if result.hot:
        parts.append(_hot(result))
    return [*parts, _placements(result), _alternatives(result)]


def _facts(result: PlanResult) -> list[tuple[str, str | Text]]:
    geometry = result.geometry
    orders = ", ".join(map(str, geometry.orders or ()))
    layers = ", ".join(map(str, geometry.layers or ()))
    sizes = sorted(set(geometry.rows_per_head or ()))
    rows: list[tuple[str, str | Text]] = [
        ("scheme", f"{geometry.scheme}, orders {orders}, {geometry.heads} heads, layers {layers}"),
        ("rows per head", f"{', '.join(f'{size:,}' for size in sizes)} or the primes above"),
        (
            "rows",
            f"{result.rows:,} of {result.dim} x {result.dtype}, {result.row_bytes} bytes each",
        ),
        ("parameters", f"{result.params:,}"),
        ("bytes of rows", f"{quantity(result.rows_bytes, 'bytes')} ({result.rows_bytes:,} bytes)"),
        ("on disk", f"{quantity(result.total_bytes, 'bytes')} ({result.total_bytes:,} bytes)"),
        ("a token reads", f"{result.token_rows:,} rows, {result.token_bytes:,} bytes"),
        ("corpus", _corpus(result)),
        ("hardware", f"{result.hardware.name}: {result.hardware.source}"),
    ]
    if result.out is not None:
        rows.append(("written", shown_path(result.out)))
    return rows


def _corpus(result: PlanResult) -> str:
    if result.counted_tokens is None:
        return f"{result.tokens:,} tokens, no statistics: all numbers are bounds"
    counted = f"{result.counted_tokens:,} tokens counted"
    if result.tokens == result.counted_tokens:
        return counted
    factor = result.tokens / result.counted_tokens
    far = " - far beyond the 4 to 10 times for which the curve was checked" if factor > 100 else ""
    return f"{result.tokens:,} tokens, {factor:,.4g} times the {counted}{far}"


def _expected(result: PlanResult) -> RenderableType:
    rows = []
    for each in result.expected:
        most = "at most " if each.bound else ""
        error = f" ± {quantity(each.distinct_error, '').strip()}" if each.distinct_error else ""
        rows.append(
            (
                f"{each.order}",
                f"{most}{quantity(each.distinct, '').strip()}{error}",
                f"{each.rows_per_head:,.0f}",
                f"{percent(each.occupied, 2)} ± {percent(each.occupied_error, 2)}",
                f"{each.clean:.2f}",
                percent(each.none_clean, 2),
                percent(each.all_clean, 2),
            )
        )
    names = (
        *(">n", ">distinct n-grams", ">rows per head", ">of them used"),
        *(">clean heads", ">none clean", ">all clean"),
    )
    title = "Expected use of the rows (clean: no other n-gram on the row; rows per head: the mean"
    if result.tokens != (result.counted_tokens or result.tokens):
        title += "; errors assume documents of the same kind"
    title += ")"
    return grid(title, names, rows)


def _hot(result: PlanResult) -> RenderableType:
    most = "at most " if any(each.at_most for each in result.hot) else ""
    rows = [
        (
            f"{each.order}",
            "-" if each.rows is None else f"{most}{each.rows:,}",
            "-" if each.share is None else percent(each.share, 2),
            "-" if each.rows is None else quantity(each.rows * result.row_bytes, "bytes"),
            "unknown" if each.reach is None else percent(each.reach, 1),
            ("held-out text" if each.held_out else "the counted corpus")
            + (", larger heads" if each.at_most else ""),
        )
        for each in result.hot
    ]
    title = f"Hot rows: {percent(result.hit_rate, 0)} of look-ups, "
    missed = [each for each in result.hot if each.rows is None]
    if not missed:
        title += most + quantity(result.hot_bytes, "bytes")
    else:
        title += "; ".join(f"{each.order}-grams: {_unreached(each)}" for each in missed)
    names = (">n", ">rows", ">of all", ">bytes", ">on used rows", "measured on")
    return grid(title, names, rows)


def _unreached(hot: HotShare) -> str:
    if hot.reach is None:
        return "these counts cannot tell; count with these --rows-per-head"
    return f"at most {percent(hot.reach, 1)} of look-ups fall on rows that this corpus uses"


def _placements(result: PlanResult) -> RenderableType:
    rows = [
        (
            each.name,
            Text("yes", "green") if each.fits else Text("no", "red"),
            _bytes(each.hbm_bytes),
            _bytes(each.host_bytes),
            _bytes(each.disk_bytes),
            quantity(each.moved, "bytes"),
            _seconds(each.token_seconds),
            ("at most " if each.at_most else "") + _seconds(each.batch_seconds * result.batch),
        )
        for each in result.placements
    ]
    names = (
        *("placement", "fits", ">HBM", ">host", ">disk", ">moved per token", ">time"),
        f">{result.batch:,} tokens",
    )
    share = ""
    batch = result.batch_share
    if batch is not None:
        said = f"at most {percent(batch.share, 0)}" if batch.at_most else _share(batch)
        share = f"; {said} of a batch's look-ups are distinct rows"
    return grid(f"Where the rows fit; times from bandwidth alone{share}", names, rows)


def _alternatives(result: PlanResult) -> RenderableType:
    orders = [str(each.order) for each in result.expected]
    rows = [_alternative(each) for each in result.alternatives]
    used = f">used, {' / '.join(orders)}"
    clean = f">heads clean, {' / '.join(orders)}"
    names = ("", ">heads", ">width", "dtype", ">rows per head", ">token reads", used, clean)
    return grid("The same bytes in other shapes", names, rows)


def _alternative(each: Alternative) -> tuple[str, ...]:
    return (
        ">" if each.planned else "",
        f"{each.heads}",
        f"{each.dim}",
        each.dtype,
        f"{each.rows_per_head:,}",
        f"{each.token_bytes:,} B",
        " / ".join(percent(share, 0).replace(" %", "") for share in each.occupied) + " %",
        " / ".join(percent(share, 1).replace(" %", "") for share in each.clean) + " %",
    )


def _share(batch: BatchShare) -> str:
    return f"{percent(batch.share, 1)} ± {percent(batch.error, 1)}"


def _bytes(count: int) -> str:
    return quantity(count, "bytes") if count else "-"


def _seconds(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"
