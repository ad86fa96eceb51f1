"""Draws the verdict: a sentence, the figures behind it, a curve, and what to run next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engram_cli.charts import Axis, Curve, LineChart, Mark, order_curve, share_axis
from engram_cli.numbers import brief, count, counted, percent
from engram_cli.stats.statistic import Results
from engram_cli.stats.verdict import Caught, Target, Verdict, verdict_of
from engram_cli.view import Column, Summary, Table, View

NAME = "verdict"
_KEEP = ("engram build-table", "this size, with the row hits that were counted")
_PLAIN = 7  # the colour of what holds for all orders
_LOW = 0.15  # sharing below which a name has no room under its point
_FAR = 0.05  # from the sharing of a random hash
_POINTS = 60  # of the curve
_APART = 1.3  # between lines of the terminal's picture, as a factor of the rows
_SOURCES = {
    "held out": "looked up by held-out text",
    "counted": "looked up by the text that chose them, which flatters; --holdout 0.1 tries others",
    "bounds": "bounds from the hits of rows; --holdout 0.1 measures it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NextCommand:
    """A command to run next, and what it `gives`."""

    command: str
    gives: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedVerdict:
    """The verdict in a sentence, its `figures`, and the commands to run `next`."""

    headline: str
    figures: Verdict
    next: tuple[NextCommand, ...]


def stated_verdict(results: Results) -> StatedVerdict | None:
    """Return the verdict for programs; None without the results it rests on."""
    verdict = verdict_of(results)
    if verdict is None:
        return None
    return StatedVerdict(
        headline=headline(verdict).replace("\u202f", " "),
        figures=verdict,
        next=tuple(
            NextCommand(command=command, gives=gives.replace("\u202f", " "))
            for command, gives in _commands(verdict)
        ),
    )


def verdict_view(results: Results) -> tuple[View, ...]:
    """Return the view that comes first; () without the results it rests on."""
    verdict = verdict_of(results)
    if verdict is None:
        return ()
    figures = Summary("", tuple(_facts(verdict)), _commands(verdict))
    view = View(
        name=NAME,
        title="Verdict",
        lead="",
        parts=(Summary(headline(verdict)), _chart(verdict), _picture(verdict), figures),
    )
    return (view,)


def headline(verdict: Verdict) -> str:
    """Return the verdict in words."""
    shared = percent(verdict.shared)
    if verdict.shared >= 0.9:
        return f"The table is far too small for this corpus: {shared} of look-ups meet a row that "\
            "another n-gram uses too."  # fmt: skip
    if verdict.shared >= 0.5:
        return f"The table is small for this corpus: {shared} of look-ups meet a row that "\
            "another n-gram uses too."  # fmt: skip
    if verdict.shared >= 0.1:
        return f"The table suits this corpus: {percent(1 - verdict.shared)} of look-ups have a "\
            f"row to themselves, and {shared} meet a shared row."  # fmt: skip
    if not verdict.shared:
        return "The table is large for this corpus: no look-up meets a row that another n-gram "\
            "uses too."  # fmt: skip
    return f"The table is large for this corpus: only {shared} of look-ups meet a row that "\
        "another n-gram uses too."  # fmt: skip


def next_commands(views: Sequence[View]) -> tuple[tuple[str, str], ...]:
    """Return the commands that views name, or the usual one: (command, what it gives)."""
    parts = [part for view in views for part in view.parts]
    named = (part.commands for part in parts if isinstance(part, Summary) and part.commands)
    return next(named, (_KEEP,))


def _commands(verdict: Verdict) -> tuple[tuple[str, str], ...]:
    if not verdict.targets:
        return (_KEEP,)
    others = [target for target in verdict.targets if not target.is_here]
    wanted = [target for target in others if target.factor > 1.0]
    sized = [
        (f"engram build-table --rows-per-head {target.option}", f"{_share(target)} share a row")
        for target in wanted or others[-1:]
    ]
    return (*sized, _KEEP) if wanted else (_KEEP, *sized)


def _facts(verdict: Verdict) -> Iterator[tuple[str, str]]:
    shape = f"{counted(verdict.heads, 'head')} of {counted(len(verdict.orders), 'order')}"
    if verdict.layers > 1:
        shape += f" in {verdict.layers} layers"
    rows = _sizes(verdict, 1.0)
    yield (
        "rows used",
        f"{percent(verdict.used)} of {brief(verdict.total_rows)} ({shape}, {rows} rows per head)",
    )
    yield (
        "sharing",
        f"{percent(verdict.shared)} of look-ups, {percent(verdict.least_shared)} to "
        f"{percent(verdict.most_shared)} in single heads; a random hash gives "
        f"{percent(verdict.ideal)}",
    )
    if verdict.none_clean is not None:
        alone = percent(1.0 - verdict.none_clean)
        yield (
            "own row",
            f"{alone} of the look-ups of the worst order have at least 1 of {verdict.heads} heads "
            "to themselves",
        )
    if abs(verdict.shared - verdict.ideal) > _FAR:
        yield (
            "caution",
            "this layout does not hash as a random one does, for which sizes are computed: count "
            "again with a size before you build it",
        )
    for target in verdict.targets:
        sizes = target.rows if not verdict.even else target.rows[:1]
        known = f", ±{100 * target.error:.2g}\u202f%" if target.error else ""
        yield (
            f"{_at(target.share)} sharing",
            f"{_takes(target, sizes)} (random hash{known})",
        )
    yield "cache", _cached(verdict.caught)
    yield "larger corpus", _growth(verdict)


def _cached(caught: tuple[Caught, ...]) -> str:
    if not caught:
        return "not measured; --holdout 0.1 measures it"
    said = [f"the hottest {_at(each.rows_share)} serve {_range(each)}" for each in caught]
    return f"of the rows, {' and '.join(said)} of look-ups ({_SOURCES[caught[0].source]})"


def _growth(verdict: Verdict) -> str:
    larger = verdict.larger_corpus
    if larger is not None:
        return (
            f"with {larger.factor} times the tokens of the same kind, {percent(larger.shared)} "
            f"±{100 * larger.error:.1f} of look-ups would share a row"
        )
    if not verdict.growth_measured:
        return "not measured: --no-growth, or documents were removed"
    return "not predicted: this takes about 150 documents, or pieces of 16,384 tokens"


def _range(caught: Caught) -> str:
    low, high = percent(caught.low), percent(caught.high)
    return low if low == high else f"{low} to {high}"


def _sizes(verdict: Verdict, factor: float) -> str:
    """Return the rows per head at `factor` times today's: one number, or those of each order."""
    rows = [order.rows * factor for order in verdict.orders]
    return brief(min(rows)) if verdict.even else ", ".join(map(brief, rows))


def _takes(target: Target, sizes: tuple[int, ...]) -> str:
    if target.is_here:
        return "what this table has"
    return f"takes {' and '.join(map(count, sizes))} rows per head, {_times(target.factor)} today's"


def _times(factor: float) -> str:
    return f"{factor:.3g} times" if 0.001 <= factor < 1000 else f"{brief(factor)} times"


def _at(share: float) -> str:
    return f"{100 * share:g}\u202f%"


def _rounded(target: Target) -> str:
    return ", ".join(map(brief, target.rows if len(set(target.rows)) > 1 else target.rows[:1]))


def _share(target: Target) -> str:
    return "half of the look-ups" if target.share == 0.5 else f"{_at(target.share)} of look-ups"


def _chart(verdict: Verdict) -> LineChart:
    least, most = _span(verdict)
    steps = [least * (most / least) ** (at / (_POINTS - 1)) for at in range(_POINTS)]
    unit = min(order.rows for order in verdict.orders) if verdict.even else 1.0
    curves = [
        order_curve(order.order, [(k * unit, order.sharing(k)) for k in steps])
        for order in verdict.orders
    ]
    if len(curves) > 1:
        mean_points = tuple((k * unit, verdict.sharing(k)) for k in steps)
        curves.insert(0, Curve("mean of the orders", _PLAIN, mean_points, wide=True))
    low = verdict.shared < _LOW
    marks = [Mark(unit, verdict.shared, "you are here", "higher" if low else "below")]
    marks += [
        Mark(target.factor * unit, target.share, f"{_at(target.share)}: {_rounded(target)} rows")
        for target in verdict.targets
        if not target.is_here
    ]
    return LineChart(
        name="sharing",
        title="Sharing against rows per head",
        description="A falling line for each order: the share of look-ups that meet a shared row, "
        "against the rows per head. Marked: this table, 50 % and 10 %.",
        note="lines: a random hash with as many distinct n-grams; you are here: measured",
        x=Axis("rows per head" if verdict.even else "times today's rows per head", log=True),
        y=share_axis("look-ups that meet a shared row", high=1.0),
        curves=tuple(curves),
        marks=tuple(marks),
    )


def _span(verdict: Verdict) -> tuple[float, float]:
    """Return the factors of today's rows between which the curve is drawn."""
    met = [1.0, *(target.factor for target in verdict.targets)]
    return min(met) / 8.0, max(met) * 8.0


def _picture(verdict: Verdict) -> Table:
    """Return the same curve as lines of bars, for the terminal."""
    marked = {1.0: f"you are here, measured: {percent(verdict.shared)}"}
    others = [target for target in verdict.targets if not target.is_here]
    marked |= {target.factor: f"{_at(target.share)} sharing" for target in others}
    least, most = _span(verdict)
    power, factors = 1.0, list(marked)
    while power > least:
        power /= 2.0
    while power < most:
        power *= 2.0
        if all(max(power / each, each / power) >= _APART for each in factors):
            factors.append(power)
    factors = _thinned(sorted(factors), marked)
    rows = tuple(
        (_sizes(verdict, k), verdict.sharing(k), verdict.sharing(k), marked.get(k, ""))
        for k in factors
    )
    columns = (
        Column("rows per head", "text"),
        Column("sharing", "percent", 1),
        Column("", "percent", bar=True),
        Column("", "text"),
    )
    title = "Look-ups that meet a shared row, by rows per head"
    return Table(title, columns, rows, note="mean of the orders, random hash", where="terminal")


def _thinned(factors: list[float], marked: dict[float, str]) -> list[float]:
    """Return every second or third factor where there are many, and all that are marked."""
    every = max(1, round(len(factors) / 8))
    return [k for at, k in enumerate(factors) if k in marked or at % every == 0]
