"""engram compress-vocab."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.cli.options import ForceOption, JsonOption, QuietOption, WorkspaceOption
from engram_cli.cli.terminal import Terminal, follow, reported, shown_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.compress_vocab import CompressVocabResult
    from engram_cli.vocab.groups import Group, VocabDiff

_MOVED = 12


def compress_vocab(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="tokenizer.json, a Hugging Face folder, or a compressed vocabulary to inspect "
            "(./tokenizer.json, else that of the checkpoint in this folder, else the installed "
            "DeepSeek tokenizer).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Parquet file to write (engram-vocab.parquet)."),
    ] = None,
    show: Annotated[
        list[str] | None, typer.Option(help="Print the group of tokens that this text belongs to.")
    ] = None,
    diff: Annotated[
        Path | None, typer.Option(help="Compare with another compressed vocabulary.")
    ] = None,
    expect: Annotated[
        int | None, typer.Option(help="Exit with 1 unless there are this many compressed ids.")
    ] = None,
    groups: Annotated[int, typer.Option(min=0, help="Number of largest groups to print.")] = 8,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Map look-alike tokens of a tokenizer ("Apple", " apple") to one id per group.

    With --show or --diff, nothing is written unless you give --out.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from engram_cli.commands.compress_vocab import (
            CompressVocabRequest,
            check_expectation,
            run_compress_vocab,
        )
        from engram_cli.commands.workspace import Workspace

        request = CompressVocabRequest(
            source=source,
            out=out,
            force=force,
            show=tuple(show or ()),
            against=diff,
            expect=expect,
            groups=groups,
            workspace=Workspace(workspace),
        )
        result = run_compress_vocab(request, terminal)
        following = follow("engram hash-stats corpus.txt", workspace, vocab=out)
        written = result.written is not None
        terminal.result(result, *_parts(result), next_command=following if written else None)
        check_expectation(result, expect)


def _parts(result: CompressVocabResult) -> list[RenderableType]:
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
    parts += [_shown(text, group) for text, group in result.shown]
    if result.difference is not None:
        parts += _difference(result.difference)
    return parts


def _pad(result: CompressVocabResult) -> str:
    from engram_cli.commands.pad_token import named

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


def _shown(text: str, group: Group | None) -> RenderableType:
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
