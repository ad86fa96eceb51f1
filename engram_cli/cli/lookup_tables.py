"""Prints look-ups: one line per order with a cell per head, and the n-grams on the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from engram_cli.cli.render import count, facts, grid, read_text, times
from engram_cli.cli.terminal import shown_path

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from engram_cli.commands.lookup.command import LookupResult
    from engram_cli.commands.lookup.rows import Lookup, OrderLookup, TokenLookup

_HEADS = 8  # of a line at most
_BEFORE = 22  # columns of the terminal before the first head
_TOKEN = 11
_MET = 24
_OTHERS, _SAME = "*", "="


def lookup_parts(result: LookupResult) -> list[RenderableType]:
    """Return the whole result."""
    parts: list[RenderableType] = [facts("Look-up", _facts(result))]
    parts.append(_Grid("Text", result.tokens, result.tokens_total))
    if result.against:
        parts.append(_Grid("Against", result.against, result.against_total))
        parts.append(_shared(result))
    met = _met(result.tokens)
    if met is not None:
        parts.append(met)
    return parts


def _facts(result: LookupResult) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = [
        (result.kind, f"{shown_path(result.path)}, layer {result.layer}, {result.scheme}"),
        ("cells", _legend(result)),
    ]
    if result.stats is not None:
        whole = "every n-gram" if result.sample_exact else "the most frequent n-grams and a sample"
        rows.append(("statistics", f"{shown_path(result.stats)}, with {whole}"))
    if result.vectors is not None:
        shape = " x ".join(f"{n:,}" for n in result.vectors_shape)
        rows.append(("written", f"{shown_path(result.vectors)}, float32 {shape}"))
    if result.read is not None:
        rows.append(("read", read_text(result.read)))
    return rows


def _legend(result: LookupResult) -> str:
    some = result.tokens[0].orders[0].heads[0]
    said = ["row of the head"]
    if some.hits is not None:
        said.append("hits in the corpus")
    if some.norm is not None:
        said.append("norm")
    text = ", ".join(said)
    if result.stats is not None:
        text += f"; {_OTHERS} another known n-gram uses it"
    if result.against:
        text += f"; {_SAME} both texts use it"
    return text


@dataclass(frozen=True, slots=True)
class _Grid:
    """The look-ups of some tokens, as many heads in a line as the terminal is wide for."""

    what: str
    tokens: Sequence[TokenLookup]
    total: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [c for t in self.tokens for order in t.orders for c in _cells(order.heads)[1]]
        widest = max(len(line) for cell in cells for line in cell.plain.split("\n"))
        most = max(len(order.heads) for order in self.tokens[0].orders)
        fitting = max(1, (options.max_width - _BEFORE) // (max(widest, len("head 0")) + 1))
        yield _grid(self.what, self.tokens, self.total, min(most, _HEADS, fitting))


def _grid(what: str, tokens: Sequence[TokenLookup], total: int, heads: int) -> RenderableType:
    """Return a table of the look-ups, `heads` in a line."""
    shown = "" if len(tokens) == total else f", the first {len(tokens):,} of {total:,} tokens"
    table = Table(
        title=f"{what}{shown}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        header_style="cyan",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("token", width=_TOKEN, no_wrap=True, overflow="ellipsis")
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for head in range(heads):
        table.add_column(f"head {head}" if head == 0 else f"{head}", justify="right", no_wrap=True)
    for token in tokens:
        for index, order in enumerate(token.orders):
            for begin in range(0, len(order.heads), heads):
                kinds, cells = _cells(order.heads[begin : begin + heads])
                name = _token(token) if index == 0 and begin == 0 else Text()
                table.add_row(name, f"{order.order}" if begin == 0 else "", kinds, *cells)
        table.add_section()
    return table


def _token(token: TokenLookup) -> Text:
    text = Text(token.text, style="bold")
    text.append(f"\n{token.token_id}", style="dim")
    text.append(f"\n-> {token.compressed_id}", style="dim")
    return text


def _cells(heads: Sequence[Lookup]) -> tuple[Text, list[Text]]:
    """Return the names of a cell's lines, and the cell of each head."""
    kinds = ["row"]
    if heads[0].hits is not None:
        kinds.append("hits")
    if heads[0].norm is not None:
        kinds.append("norm")
    cells = []
    for head in heads:
        marks = (_OTHERS if head.others_known else "") + (_SAME if head.shared_with else "")
        cell = Text(f"{head.row}", style="bold" if head.shared_with else "")
        cell.append(marks or " ", style="yellow")
        if head.hits is not None:
            cell.append(f"\n{_short(head.hits)} ", style="" if head.hits else "dim")
        if head.norm is not None:
            cell.append(f"\n{head.norm:.3g} ", style="dim")
        cells.append(cell)
    return Text("\n".join(kinds), style="dim"), cells


def _short(hits: int) -> str:
    if hits < 10_000:
        return f"{hits}"
    for step, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if hits >= step:
            return f"{hits / step:.3g}{letter}"
    return f"{hits}"


def _shared(result: LookupResult) -> RenderableType:
    rows = [
        (
            f"{each.order}",
            f"{each.lookups:,}",
            f"{each.same:,}",
            f"{each.chance:,}",
            f"{each.lookups - each.same - each.chance:,}",
        )
        for each in result.shared
    ]
    names = (">order", ">look-ups", ">same n-gram", ">another n-gram, same row", ">own row")
    return grid("Rows that both texts use", names, rows)


def _met(tokens: Sequence[TokenLookup]) -> RenderableType | None:
    """Return the known n-grams on the rows of the text, look-up by look-up."""
    met = [
        (order, head)
        for token in tokens
        for order in token.orders
        for head in order.heads
        if head.others_known
    ]
    if not met:
        return None
    rows = [
        (
            order.ngram,
            _own_times(order),
            f"{head.head}",
            f"{head.row}",
            head.others[0].text,
            times(head.others[0].count, head.others[0].exact),
            f"{head.others_known - 1:,}",
        )
        for order, head in met[:_MET]
    ]
    title = "Known n-grams on the same rows"
    if len(met) > len(rows):
        title += f", the first {len(rows)} of {count(len(met), 'look-up')}"
    names = ("n-gram", ">count", ">head", ">row", "also on it", ">count", ">and others")
    return grid(title, names, rows)


def _own_times(order: OrderLookup) -> str:
    """Return how often the n-gram of a look-up occurs."""
    if order.at_most == 0 or order.absent:
        return "0"
    if order.sampled is not None:
        return f"{order.sampled:,}"
    return "?" if order.at_most is None else times(order.at_most, False)
