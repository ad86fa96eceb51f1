"""The console that people read: rich's, whose texts are plain whatever they were made of."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from engram_cli.cli.plain import clean_segments


class PlainConsole(Console):
    """Writes texts as they are: no markup, no emoji codes, nothing that acts on the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of a renderable; all that is printed comes by here."""
        return clean_segments(super().render(renderable, options))
