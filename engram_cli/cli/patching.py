"""engram patch: makes patches, replaces rows, puts them back, and says which were replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, shown_path
from engram_cli.commands.requests.patch import (
    ApplyPatchRequest,
    ListPatchesRequest,
    ShowPatchRequest,
    StackPatchesRequest,
    UndoPatchRequest,
)
from engram_cli.commands.requests.patch_make import PatchMakeRequest
from engram_cli.numbers import counted, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from engram_cli.commands.patch.result import LayerRows, PatchInfo, ShowPatchResult
    from engram_cli.commands.patch_make.result import PatchMakeResult
    from engram_cli.patches.stack import Conflict

_SHOWN = 8  # conflicts
_NO_DIGEST = " (computed: the file has none, so that damage to its values is not found)"


@command(PatchMakeRequest)
def make(request: PatchMakeRequest, terminal: Terminal) -> None:
    """Teach a model facts by changing a few rows of its memory, and write them as a patch.

    Of the rows that the facts' n-grams read, those are changed that move the facts most for each
    look-up of the corpus. Prints what else reads them, and measures on held-out text how far the
    model moved.
    """
    from engram_cli.commands.patch_make.command import make_patch_of_facts

    result = make_patch_of_facts(request, terminal)
    terminal.result(result, *make_parts(result))
    terminal.note(f"written: {shown_path(result.patch)}")


def make_parts(result: PatchMakeResult) -> list[RenderableType]:
    """Return what was done, and the tables of its views."""
    from engram_cli.cli.render import facts
    from engram_cli.cli.views import printed
    from engram_cli.commands.patch_make.view import lines_of, make_views

    lines = [
        ("model", shown_path(result.checkpoint)),
        ("memory", shown_path(result.bundle)),
        *lines_of(result),
        ("ran on", f"{result.device} in {result.dtype}, {result.seconds:,.0f} s"),
    ]
    return [facts("Patch", lines), *printed(make_views(result))]


@command(ApplyPatchRequest)
def apply(request: ApplyPatchRequest, terminal: Terminal) -> None:
    """Replace rows of a table or bundle by those of patches, in place or in a copy.

    In place, what was there is kept in a journal next to it, so that engram patch undo restores
    every byte. Interrupted, the artifact does not load until the same command is run again, or the
    patch is undone.

    Patches of another layout are refused, and patches that were made for other rows.
    """
    from engram_cli.cli.render import facts
    from engram_cli.commands.patch.command import apply_patches

    result = apply_patches(request, terminal)
    rows = [("artifact", shown_path(result.path))]
    if result.out is not None:
        rows.append(("written", shown_path(result.out)))
    rows += _named(result.patches)
    rows += [("rows", f"{result.rows:,} replaced"), ("digest", result.digest)]
    if result.journal is not None:
        rows.append(("journal", shown_path(result.journal)))
    rows += _met(result.conflicts)
    undo = None if result.out is not None else f"engram patch undo {shown_path(result.path)}"
    terminal.result(result, facts("Patched", rows), next_command=undo)


@command(UndoPatchRequest)
def undo(request: UndoPatchRequest, terminal: Terminal) -> None:
    """Put back the rows that a patch replaced in place, bit for bit.

    Without a number or digest it is the last patch. An interrupted apply or undo is undone first.
    """
    from engram_cli.cli.render import facts
    from engram_cli.commands.patch.command import undo_patch

    result = undo_patch(request, terminal)
    rows = [("artifact", shown_path(result.path)), *_named(result.undone)]
    rows += [("left", f"{result.left:,} applied in place"), ("digest", result.digest)]
    terminal.result(result, facts("Undone", rows))


@command(ListPatchesRequest)
def list_(request: ListPatchesRequest, terminal: Terminal) -> None:
    """List the patches that the rows of a table or bundle have, in the order of application."""
    from engram_cli.cli.render import facts, grid
    from engram_cli.commands.patch.command import list_patches

    result = list_patches(request, terminal)
    rows = [("artifact", shown_path(result.path)), ("digest", result.digest)]
    if result.pending is not None:
        rows.append(("interrupted", result.pending))
    if result.journal is not None:
        rows.append(("journal", shown_path(result.journal)))
    parts: list[RenderableType] = [facts("Patches", rows)]
    if result.patches:
        lines = [
            (
                str(each.number),
                f"{each.rows:,}",
                each.description or "-",
                each.digest[7:19],
                "yes" if each.can_undo else "no",
            )
            for each in result.patches
        ]
        heads = (">number", ">rows", "description", "digest", "undo")
        parts.append(grid("Applied, the oldest first", heads, lines))
    terminal.result(result, *parts)


@command(StackPatchesRequest)
def stack(request: StackPatchesRequest, terminal: Terminal) -> None:
    """Look at several patches together on a table, bundle or checkpoint, which is not changed.

    They count in the order in which they are given: of a row that several have, the last one wins.
    Two patches conflict where they give one row other values, and the later one was not made for
    what the earlier one leaves. --out writes one patch that does what they do.

    attach(model, bundle, patches=[...]) stacks them when a model is loaded.

    The exit code is 0 without conflicts, or 1.
    """
    from engram_cli.cli.render import facts
    from engram_cli.commands.patch.command import stack_patches

    result = stack_patches(request, terminal)
    rows = [("base", shown_path(result.path)), *_named(result.patches)]
    rows += [("rows", f"{result.rows:,} differ from the base"), *_met(result.conflicts)]
    if not result.conflicts:
        rows.append(("conflicts", "none"))
    if result.out is not None:
        rows.append(("written", shown_path(result.out)))
    terminal.result(result, facts("Stack", rows))
    if result.conflicts:
        raise typer.Exit(1)


@command(ShowPatchRequest)
def show(request: ShowPatchRequest, terminal: Terminal) -> None:
    """Describe a patch: its rows, what it was made for, and with --base what it changes there.

    The exit code is 1 if it is not for the base, else 0.
    """
    from engram_cli.commands.patch.command import show_patch

    result = show_patch(request, terminal)
    terminal.result(result, *_shown(result))
    if result.fits:
        raise typer.Exit(1)


def _named(patches: Sequence[PatchInfo]) -> list[tuple[str, str]]:
    """Return a line for each patch."""
    lines = []
    for each in patches:
        name = each.description or each.digest[7:19]
        done = "" if each.applied else ", applied already"
        lines.append((f"patch {each.number}", f"{name}: {counted(each.rows, 'row')}{done}"))
    return lines


def _met(conflicts: Sequence[Conflict]) -> list[tuple[str, str]]:
    """Return lines for the first conflicts, which count patches from 1."""
    lines = []
    for at, each in enumerate(conflicts[:_SHOWN]):
        text = (
            f"patch {each.second} gives {counted(each.rows, 'row')} of patch {each.first} "
            f"other values, such as row {each.row:,} of layer {each.layer}"
        )
        lines.append(("" if at else "conflicts", text))
    if len(conflicts) > _SHOWN:
        lines.append(("", f"and {len(conflicts) - _SHOWN:,} more (--json has them)"))
    return lines


def _shown(result: ShowPatchResult) -> list[RenderableType]:
    from engram_cli.cli.render import facts, grid, quantity

    made_for = "not named"
    if result.base is not None:
        made_for = f"{result.base_format or 'artifact'} {result.base}"
    rows = [
        ("patch", shown_path(result.path)),
        ("format", result.kind),
        ("description", result.description or "none"),
        ("rows", f"{result.rows:,} of {result.dim} x {result.dtype}"),
        ("size", quantity(result.nbytes, "bytes")),
        ("layout", result.fingerprint),
        ("made for", made_for),
        ("digest", result.digest + ("" if result.has_digest else _NO_DIGEST)),
        *result.facts.items(),
    ]
    if result.compared_with is not None:
        rows.append(("base", f"{shown_path(result.compared_with)}: {result.fits or 'it fits'}"))
    lines, heads = [], ["layer", ">rows", ">first", ">last"]
    if any(each.by_column for each in result.layers):
        heads += ["n-grams", ">mean change"]
    for each in result.layers:
        line = [str(each.layer), f"{each.rows:,}", f"{each.first:,}", f"{each.last:,}"]
        if each.mean_change is not None:
            line += [_by_order(each), percent(each.mean_change)]
        lines.append(line)
    return [facts("Patch", rows), grid("Rows", heads, lines)]


def _by_order(own: LayerRows) -> str:
    """Return how many rows lie in the heads of each order: 3-grams: 8 rows in 8 heads."""
    found: dict[int, list[int]] = {}
    for order, _, count in own.by_column:
        if count:
            found.setdefault(order, []).append(count)
    return "; ".join(
        f"{order}-grams: {counted(sum(own), 'row')} in {counted(len(own), 'head')}"
        for order, own in found.items()
    )


patch_app = typer.Typer(
    name="patch",
    help="Make patches, replace rows of a table or bundle by theirs, and put them back.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
for name, run_command in (
    ("make", make),
    ("apply", apply),
    ("undo", undo),
    ("list", list_),
    ("stack", stack),
    ("show", show),
):
    patch_app.command(name)(run_command)
