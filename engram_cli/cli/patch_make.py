"""engram patch make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, shown_path
from engram_cli.commands.requests.patch_make import PatchMakeRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.patch_make.result import PatchMakeResult


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
