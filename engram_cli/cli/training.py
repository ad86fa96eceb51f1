"""engram train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal, shown_path
from engram_cli.commands.requests.train import TrainRequest
from engram_cli.numbers import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.train.command import TrainResult
    from engram_cli.training.results import Course, LossLine


@command(TrainRequest)
def train(request: TrainRequest, terminal: Terminal) -> None:
    """Train a memory on text, and show what it does to the loss on held-out text.

    Without --bundle, the memory is made from the training text first. The same command resumes an
    interrupted run. For several GPUs: torchrun --nproc-per-node 2 -m engram_cli train ...
    """
    from engram_cli.commands.processes import leave_processes
    from engram_cli.commands.train.command import train as run

    result = run(request, terminal)
    leave_processes()
    if not result.is_first_process:
        terminal.close()
        return
    terminal.result(result, *(_outcome(result) if result.outcome else _estimate(result)))
    if result.outcome is not None:
        model = "model"
        if result.model is not None:
            model = f'AutoModelForCausalLM.from_pretrained("{shown_path(result.model)}")'
        terminal.note(f'next, in Python: attach({model}, "{shown_path(result.out)}")')


def _estimate(result: TrainResult) -> list[RenderableType]:
    from engram_cli.cli.render import facts, percent, quantity

    assert result.cost is not None
    assert result.memory_bytes is not None
    seconds = result.steps * result.cost.seconds
    error = percent(max(result.cost.spread, 0.1), 0)
    pace = quantity(result.tokens_a_step / result.cost.seconds, "tokens")
    rows = [
        ("training", f"{counted(result.steps, 'step')} of {result.tokens_a_step:,} tokens"),
        ("time", f"about {_duration(seconds)} (+-{error}), without evaluations: {pace}/s"),
        ("memory", f"about {quantity(result.memory_bytes, 'bytes')}"),
        ("measured on", "4 steps of random text, which trained nothing"),
        ("would resume" if result.is_begun else "would write", shown_path(result.out)),
    ]
    return [facts("Training", rows)]


def _outcome(result: TrainResult) -> list[RenderableType]:
    from engram_cli.cli.render import facts, grid, percent

    outcome = result.outcome
    assert outcome is not None
    lines = [_loss(line) for line in outcome.lines]
    columns = ("", "loss", "perplexity", "difference", "95 % interval")
    table = grid("Loss on held-out text, nats per token", columns, lines)
    learned = [f"{part.name} {part.trainable:,}" for part in outcome.parts if part.trainable]
    rows = [
        ("trained", f"{', '.join(learned)} parameters"),
        ("text", f"{outcome.train_tokens:,} tokens; held out: {outcome.held_out_tokens:,} tokens "
         f"in {counted(outcome.held_out_documents, 'document')}"),
    ]  # fmt: skip
    if outcome.trained_share:
        share = percent(outcome.trained_share)
        rows.append(("overlap", f"{share} of the held-out tokens are in the training text"))
    rows += [
        (line.name, _course(line.course, outcome.tokens_a_step))
        for line in outcome.lines
        if line.course is not None
    ]
    places = (result.bundle, result.adapter, result.model, result.adapter_alone)
    written = [path for path in places if path is not None]
    rows.append(("written", ", ".join(map(shown_path, written))))
    return [table, facts("Training", rows)]


def _loss(line: LossLine) -> tuple[str, ...]:
    difference = "" if line.difference is None else f"{line.difference:+.4f}"
    interval = "" if line.low is None else f"{line.low:+.4f} to {line.high:+.4f}"
    return line.name, f"{line.loss:.4f}", f"{line.perplexity:,.2f}", difference, interval


def _course(course: Course, tokens_a_step: int) -> str:
    """Return how many steps a part of the run took, which weights are kept, and the time."""
    from engram_cli.cli.render import quantity

    told = counted(course.steps, "step")
    if course.early:
        told += ", then the loss fell no more"
    if course.best != course.steps:
        told += f"; kept: step {course.best:,}"
    if course.timed_steps:
        pace = quantity(course.timed_steps * tokens_a_step / course.seconds, "tokens")
        resumed = course.timed_steps < course.steps
        since = f" for the last {course.timed_steps:,}" if resumed else ""
        told += f"; {_duration(course.seconds)}{since}, {pace}/s with evaluations"
    return told


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
