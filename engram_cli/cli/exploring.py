"""engram explore."""

from __future__ import annotations

from dataclasses import dataclass

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal
from engram_cli.commands.requests.explore import ExploreRequest


@dataclass(frozen=True, slots=True)
class _Served:
    address: str


@command(ExploreRequest)
def explore(request: ExploreRequest, terminal: Terminal) -> None:
    """Serve a local page that looks up texts, n-grams and rows, until Ctrl-C.

    Only this machine reaches it, and only by the address that is printed. With --model it also
    shows how far the gates open, and what the memory changes in the predictions.
    """
    from engram_cli.explore.server import explore as serve

    def announce(address: str) -> None:
        from rich.text import Text

        terminal.result(_Served(address), Text(address))
        terminal.note("open it in a browser; Ctrl-C ends it")

    serve(request, announce, terminal)
