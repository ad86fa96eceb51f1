"""engram evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, shown_path
from engram_cli.commands.requests.evaluation import EvaluateRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.evaluate.result import EvaluateResult


@command(EvaluateRequest)
def evaluate(request: EvaluateRequest, terminal: Terminal) -> None:
    """Measure what a memory does to a model's loss on held-out text, with an interval.

    One pass over the text gives the model alone, with the memory, with patches on the memory, with
    a LoRA adapter, and with memory and adapter. The difference is broken down by what the memory
    could know, by token frequency and by position. Runs on a CPU, a GPU, or several: torchrun
    --nproc-per-node 4 -m engram_cli evaluate.
    """
    from engram_cli.commands.evaluate.command import evaluate as run
    from engram_cli.commands.processes import leave_processes

    result = run(request, terminal)
    leave_processes()
    if result.process:  # the first process reports for all
        return
    terminal.result(result, *evaluation_parts(result))
    if any(own.low is None for own in result.differences):
        terminal.note(
            "no interval: it needs several documents, none of which has most of the tokens "
            "(--document-separator divides a text file)"
        )
    if result.report is not None:
        terminal.note(f"written: {shown_path(result.report)}")


def evaluation_parts(result: EvaluateResult) -> list[RenderableType]:
    """Return what was evaluated, and the tables of its views."""
    from engram_cli.cli.render import facts
    from engram_cli.cli.views import printed
    from engram_cli.commands.evaluate.page import described, evaluation_views

    lines = [("model", shown_path(result.checkpoint))]
    for name, path in (
        ("memory", result.bundle),
        *((f"patch {number}", each) for number, each in enumerate(result.patches, 1)),
        ("adapter", result.adapter),
        ("statistics", result.statistics),
    ):
        if path is not None:
            lines.append((name, shown_path(path)))
    several = f", {result.processes} processes" if result.processes > 1 else ""
    lines += [
        ("text", described(result)),
        ("ran on", f"{result.device} in {result.dtype}{several}, {result.seconds:,.0f} s"),
    ]
    return [facts("Evaluation", lines), *printed(evaluation_views(result))]
