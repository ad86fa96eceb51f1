"""engram compress-vocab and engram hash-stats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, follow, shown_path
from engram_cli.commands.requests.corpus import CompressVocabRequest
from engram_cli.commands.requests.update_stats import UpdateStatsRequest
from engram_cli.errors import InputError
from engram_cli.malloc import bound_arenas
from engram_cli.numbers import percent as share_text
from engram_cli.numbers import seconds_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.compress_vocab import CompressVocabResult
    from engram_cli.commands.hash_stats import HashStatsResult
    from engram_cli.commands.statistics_folder import StatisticsResult
    from engram_cli.view import View
    from engram_cli.vocab.groups import Group, VocabDiff

_MOVED = 12  # regrouped tokens that are listed
_OF_MERGING = frozenset(
    (
        *("sources", "merge", "vocab", "out", "force", "workspace", "ngrams", "report"),
        *("as_json", "quiet"),
    )
)
_COUNTED_BEFORE = frozenset(
    (
        *("join_documents", "exact", "compare_uncompressed", "group_by", "locality", "holdout"),
        *("growth", "sample_size"),
    )
)


@command(CompressVocabRequest)
def compress_vocab(request: CompressVocabRequest, terminal: Terminal) -> None:
    """Map look-alike tokens of a tokenizer ("Apple", " apple") to one id per group.

    With --show or --diff, nothing is written unless you give --out.
    """
    from engram_cli.commands.compress_vocab import check_expectation, run_compress_vocab

    result = run_compress_vocab(request, terminal)
    following = None
    if result.written is not None:
        folder = request.workspace.folder
        following = follow("engram hash-stats corpus.txt", folder, vocab=request.out)
    terminal.result(result, *vocab_parts(result), next_command=following)
    check_expectation(result, request.expect)


@command(UpdateStatsRequest)
def hash_stats(
    request: UpdateStatsRequest,
    terminal: Terminal,
    context: typer.Context,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the statistics folders in SOURCES into one.")
    ] = False,
    ngrams: Annotated[
        bool,
        typer.Option(
            "--ngrams", help="Show frequent n-grams, and frequent n-grams that share a row."
        ),
    ] = False,
) -> None:
    """Hash a corpus: measure which rows it uses and how many n-grams share a row.

    With --to, add documents to statistics or remove them, without reading the rest of the corpus.
    """
    bound_arenas()  # before the progress bar starts a second thread
    terminal.start("loading", None, "")
    if merge and request.to is not None:
        raise InputError("--merge and --to exclude each other", "merge first, then add or remove")
    if merge:
        _note_idle(terminal, context, _is_unmerged, "merging uses the parts as they were counted")
        _merge(request, terminal, ngrams)
        return
    if request.to is not None:
        _update(request, terminal, context, ngrams)
        return
    from engram_cli.commands.hash_stats import hash_stats as run

    result = run(request, terminal)
    _print_statistics(result, _summary(result), request, terminal, ngrams)
    if request.report is not None:
        terminal.note(f"report: {shown_path(request.report)}")


def _print_statistics(
    result: StatisticsResult,
    summary: RenderableType,
    request: UpdateStatsRequest,
    terminal: Terminal,
    ngrams: bool,
) -> None:
    """Print the verdict, what was counted, the tables, and what to run next."""
    from engram_cli.cli.views import printed
    from engram_cli.stats.verdict_view import NAME, next_commands

    views = views_of(result)
    first = [view for view in views if view.name == NAME]
    rest = [view for view in views if view.name != NAME]
    tables = printed(rest, asked=ngrams, verbose=terminal.verbose)
    terminal.result(result, *printed(first), summary, *tables)
    for at, (following, gives) in enumerate(next_commands(first)):
        whole = follow(following, request.workspace.folder, stats=request.out)
        terminal.note(f"{'or' if at else 'next'}: {whole}  ({gives})")


def _is_unmerged(name: str) -> bool:
    return name not in _OF_MERGING


def _note_idle(
    terminal: Terminal, context: typer.Context, idle: Callable[[str], bool], why: str
) -> None:
    """Print a note with the options of the command line that are `idle`, by name, and `why`."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if idle(str(parameter.name))
        and (source := context.get_parameter_source(str(parameter.name))) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        have = "has" if len(given) == 1 else "have"
        terminal.note(f"{', '.join(given)} {have} no effect: {why}")


def _merge(request: UpdateStatsRequest, terminal: Terminal, ngrams: bool) -> None:
    from engram_cli.cli.render import count, facts
    from engram_cli.commands.merge_stats import MergeStatsRequest, merge_stats

    result = merge_stats(
        MergeStatsRequest(
            parts=tuple(map(Path, request.sources)),
            workspace=request.workspace,
            vocab=request.vocab,
            out=request.out,
            force=request.force,
            report=request.report,
        ),
        terminal,
    )
    summary = [
        ("parts", ", ".join(shown_path(part) for part in result.parts)),
        ("corpus", f"{count(result.files, 'file')}, {count(result.documents, 'document')}"),
        ("tokens", f"{result.tokens:,}"),
        *held_out(result),
        ("scheme", f"{result.scheme}, layers {', '.join(map(str, result.layers))}"),
        ("written", shown_path(result.out)),
    ]
    merged = facts("Merged statistics", summary)
    _print_statistics(result, merged, request, terminal, ngrams)


def _update(
    request: UpdateStatsRequest, terminal: Terminal, context: typer.Context, ngrams: bool
) -> None:
    from engram_cli.cli.render import count, facts
    from engram_cli.commands.update_stats.command import update_stats

    if not request.sources:
        idle = _COUNTED_BEFORE.__contains__
        _note_idle(terminal, context, idle, "documents are counted as those of --to were")
    result = update_stats(request, terminal)
    changes = [
        (name, f"{count(documents, 'document')}, {tokens:,} tokens")
        for name, documents, tokens in (
            ("added", result.added_documents, result.added_tokens),
            ("removed", result.removed_documents, result.removed_tokens),
        )
        if documents
    ]
    files = f"{count(result.files, 'file')}, " if result.files else ""
    summary = [
        ("before", shown_path(result.to)),
        *changes,
        ("corpus", f"{files}{count(result.documents, 'document')}"),
        ("tokens", f"{result.tokens:,}"),
        *([("recounted", "all hits are those that the change leaves")] if result.recounted else []),
        *([("left out", ", ".join(result.left_out))] if result.left_out else []),
        *held_out(result),
        ("scheme", f"{result.scheme}, layers {', '.join(map(str, result.layers))}"),
        ("written", shown_path(result.out)),
    ]
    _print_statistics(result, facts("Changed statistics", summary), request, terminal, ngrams)


def _summary(result: HashStatsResult) -> RenderableType:
    from engram_cli.cli.render import count, facts, quantity

    size = "" if result.bytes is None else f", {quantity(result.bytes, 'bytes')}"
    rate = quantity(result.tokens_per_second, "tokens")
    here = result.tokens - result.resumed_tokens
    now = f", {here:,} of them in this run," if result.resumed_tokens else ""
    rows = [
        ("corpus", f"{count(result.files, 'file')}{size}, {count(result.documents, 'document')}"),
        ("tokens", f"{result.tokens:,}{now} in {seconds_text(result.seconds)}, {rate}/s"),
        *held_out(result),
        ("encoder", result.encoder or "none: the corpus holds token ids"),
        ("scheme", f"{result.scheme}, layers {', '.join(map(str, result.layers))}"),
        ("written", shown_path(result.out)),
    ]
    return facts("Statistics", rows)


def views_of(result: StatisticsResult) -> tuple[View, ...]:
    """Return the views of all statistics, which are printed."""
    from engram_cli.stats.results import draw_results
    from engram_cli.stats.statistic import Results

    found = {"orders": result.orders, "columns": result.columns, **result.sections}
    return draw_results(Results(tokens=result.tokens, documents=result.documents, found=found))


def held_out(result: StatisticsResult) -> list[tuple[str, str]]:
    """Return the line about held-out tokens; [] if nothing was held out."""
    from engram_cli.stats.statistics.locality import LocalityResult

    locality = result.sections.get("locality")
    if not isinstance(locality, LocalityResult) or not locality.held_out_tokens:
        return []
    held = locality.held_out_tokens
    share = share_text(held / (held + result.tokens))
    said = f"{held:,} tokens ({share}), looked up to measure hot rows, not counted;"
    return [("held out", f"{said} documents wholly inside them are not counted either")]


def vocab_parts(result: CompressVocabResult) -> list[RenderableType]:
    """Return what a terminal shows of a compressed vocabulary."""
    from engram_cli.cli.render import facts, percent, short_digest

    parts: list[RenderableType] = []
    if not result.shown and result.difference is None:
        rows = [
            ("ids", f"{result.tokens:,} -> {result.compressed_size:,}"),
            ("reduction", percent(result.reduction)),
            ("special", f"{result.special:,} tokens"),
            ("pad token", _pad(result)),
            ("partial UTF-8", f"{result.partial:,} tokens are grouped by their spelling"),
            ("canonical", f"{result.canonical:,} tokens are their own key"),
            ("sharing", f"{result.shared:,} tokens share an id with others"),
            ("digest", short_digest(result.vocab_digest)),
        ]
        holes = result.vocab_size - result.tokens
        if holes:
            rows.insert(1, ("holes", f"{holes:,} ids below {result.vocab_size:,} have no token"))
        if result.written:
            rows.append(("written", shown_path(result.written)))
        parts.append(facts("Compressed vocabulary", rows))
        if result.largest:
            parts.append(_largest(result.largest))
    parts += [_group(text, group) for text, group in result.shown]
    if result.difference is not None:
        parts += _difference(result.difference)
    return parts


def _pad(result: CompressVocabResult) -> str:
    from engram_cli.commands.corpus_tokenizer import named

    pad = result.pad
    if pad is None:
        return "none: the tokenizer has no special token, so name one with hash-stats --pad-id"
    return named(pad) + ("" if pad.ordinary is None else ", which also occurs in texts")


def _largest(groups: tuple[Group, ...]) -> RenderableType:
    from engram_cli.cli.render import grid

    rows = [
        (f"{group.compressed_id}", f"{len(group.members)}", _key(group), _members(group, 9))
        for group in groups
    ]
    return grid("Largest groups", (">id", ">tokens", "key", "members"), rows)


def _group(text: str, group: Group | None) -> RenderableType:
    from engram_cli.cli.render import grid
    from engram_cli.vocab.groups import readable

    if group is None:
        return f"no token of this vocabulary looks like '{readable(text)}'"
    rows = [(f"{m.token_id}", m.readable, m.token) for m in group.members]
    title = f"'{readable(text)}' is compressed id {group.compressed_id}, key '{_key(group)}'"
    return grid(title, (">token id", "text", "as spelled"), rows)


def _difference(difference: VocabDiff) -> list[RenderableType]:
    from engram_cli.cli.render import facts, grid
    from engram_cli.hashing.layout import short
    from engram_cli.vocab.groups import readable

    ours, theirs = difference.sizes
    here, there = difference.tokenizers
    same = "the same file"
    if here != there:
        same = f"{short(here)} here, {short(there)} there: they differ, so ids may mean others"
    parts: list[RenderableType] = [
        facts(
            "Difference",
            [
                ("tokenizer", same),
                ("same map", "yes" if difference.equal else "no"),
                ("compressed ids", f"{ours:,} here, {theirs:,} there"),
                ("token ids", "{:,} here, {:,} there".format(*difference.vocab_sizes)),
                ("moved", f"{difference.moved:,} token ids have another compressed id"),
                ("regrouped", f"{len(difference.regrouped):,} token ids have other company"),
            ],
        )
    ]
    if difference.regrouped:
        first = difference.regrouped[:_MOVED]
        rows = [(f"{i}", readable(t), readable(a), readable(b)) for i, t, a, b in first]
        title = f"The first {len(first)} that were regrouped"
        parts.append(grid(title, (">token id", "text", "key here", "key there"), rows))
    return parts


def _key(group: Group) -> str:
    from engram_cli.vocab.groups import readable

    return readable(group.key)


def _members(group: Group, count: int) -> str:
    names = [member.readable for member in group.members[:count]]
    more = len(group.members) - len(names)
    return "  ".join(names) + (f"  (+{more})" if more else "")
