"""Progress bars: what is done, how fast, how long it still takes."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from engram_cli.cli.render import quantity


def make_bars(console: Console) -> Progress:
    """Bars on `console` that vanish when the work ends."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        _Amount(),
        _Rate(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        expand=True,
    )


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        if not unit:  # nothing is counted
            return Text("")
        done = quantity(task.completed, unit)
        return Text(done if task.total is None else f"{done} of {quantity(task.total, unit)}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{quantity(speed, task.fields['unit'])}/s")
