"""train: a checkpoint, a text and a held-out text in; a trained bundle and what it does out.

The bundle is made from the text if none is given. Everything is written into the folder of the run,
where the same command resumes it. With `torchrun` every process runs this; the first one prepares.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_cli.commands.checkpoint import ModelShape, read_model_shape
from engram_cli.commands.load_model import check_checkpoint, load_model, require_packages
from engram_cli.commands.processes import join_processes
from engram_cli.commands.requests.options import copied, located
from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.train.folder import RunFolder, decisive
from engram_cli.commands.train.overlap import check_files_apart
from engram_cli.commands.train.prepared import Prepared, for_device, prepare, stand_in, task_of
from engram_cli.commands.workspace import Workspace
from engram_cli.files import inner_file
from engram_cli.formats.bundle import bundle_folder
from engram_cli.numbers import counted
from engram_cli.progress import SILENT, Once, Progress
from engram_cli.training import defaults
from engram_cli.training.results import Outcome, StepCost, Task
from engram_cli.vocab.tokenizer import find_tokenizer

if TYPE_CHECKING:
    from engram_cli.training.part import PartRun

MAIN, AGAINST = "memory", "lora-alone"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What was trained, or after a dry run would be: then there is no `outcome`.

    `bundle`, `adapter`, `model`, `adapter_alone`: where they were written, None for what did not
    learn. `steps`: of the memory's training. `cost`: measured on a few steps, None where it was not
    needed. `memory_bytes`: what training takes at least, without the activations, after a dry run;
    `is_begun`: whether the run would resume one that is there.
    """

    checkpoint: Path
    out: Path
    bundle: Path | None
    adapter: Path | None
    model: Path | None
    outcome: Outcome | None
    steps: int
    tokens_a_step: int
    cost: StepCost | None = None
    memory_bytes: int | None = None
    is_begun: bool = False
    adapter_alone: Path | None = None
    is_first_process: bool = True


def train(request: TrainRequest, progress: Progress = SILENT) -> TrainResult:
    """Train a memory, or resume; see `TrainRequest`.

    Raises DependencyError without torch, transformers and accelerate, InputError for choices that
    cannot be, MismatchError for a bundle of another tokenizer, CorpusError, OutputError.
    """
    require_packages("torch", "transformers", "accelerate", user="engram train")
    request = copied(located(request), progress)
    check_checkpoint(request.checkpoint)
    model = read_model_shape(request.checkpoint)
    if request.bundle is not None:
        bundle_folder(request.bundle)
    state = join_processes(request.device)
    request = for_device(request, model, state)
    run = RunFolder(request.out)
    if request.dry_run:
        run.check(decisive(request))
        check_files_apart(request)
        if run.is_begun and run.outcome is not None:
            progress.note(f"{run.path} is finished: without --dry-run you get its result")
        return replace(_dry_run(request, model, state, progress), is_begun=run.is_begun)
    progress = progress if state.is_main_process else SILENT
    with ExitStack() as held:
        with state.main_process_first():
            if not run.is_begun:
                check_files_apart(request)
            run.open(decisive(request))
            if run.outcome is None and state.is_main_process:
                held.enter_context(run.lock())
            outcome = run.outcome
            if outcome is None:
                prepared = prepare(request, model, run.work, state, Once(progress))
        if outcome is None:
            outcome = _train(request, prepared, run, progress)
            if state.is_main_process:
                run.finish(outcome)
        else:
            progress.note(f"{run.path} is finished; this is its result")
    return TrainResult(
        checkpoint=request.checkpoint,
        out=run.path,
        bundle=run.bundle,
        adapter=run.adapter if request.lora is not None else None,
        model=run.model if request.full else None,
        adapter_alone=run.path / AGAINST if request.against_lora is not None else None,
        outcome=outcome,
        steps=run.steps(MAIN) or 0,
        tokens_a_step=outcome.tokens_a_step,
        is_first_process=state.is_main_process,
    )


def _train(
    request: TrainRequest, prepared: Prepared, run: RunFolder, progress: Progress
) -> Outcome:
    """Train all parts of the run, and write what they came to."""
    task = task_of(request, prepared)
    main = _open(request, task, prepared, run.checkpoints(MAIN), progress)
    steps = _steps(request, main, prepared, run)
    progress.note(_plan(main, steps, prepared))
    course = main.train(steps)
    # Before they are measured: what was trained is there if this is interrupted.
    main.write(bundle=run.bundle, adapter=run.adapter, model=run.model)
    if request.full and prepared.is_first_process:
        _copy_tokenizer(request.tokenizer or request.checkpoint, run.model)
    lines, parts = main.lines(course), main.parts
    del main
    if request.against_lora is not None:
        rank = request.against_lora
        progress.note(f"the same with a LoRA adapter of rank {rank} and no memory, to compare")
        task = replace(task, bundle=None, lora=rank, full=False)
        other = _open(request, task, prepared, run.checkpoints(AGAINST), progress)
        course = other.train(steps)
        other.write(bundle=run.bundle, adapter=run.path / AGAINST, model=run.model)
        lines += other.lines(course)[1:]
        lines[-1] = replace(lines[-1], name="LoRA alone")
    return Outcome(
        train_tokens=prepared.train.tokens,
        held_out_tokens=prepared.held_out.tokens,
        held_out_documents=prepared.held_out.documents,
        trained_share=prepared.overlap.share if prepared.overlap else None,
        tokens_a_step=prepared.tokens_a_step,
        parts=parts,
        lines=tuple(lines),
    )


def _open(
    request: TrainRequest, task: Task, prepared: Prepared, folder: Path, progress: Progress
) -> PartRun:
    """Return the part of a task, its model loaded: in bfloat16 where it is frozen on a GPU."""
    import torch

    from engram_cli.training.part import PartRun

    dtype = torch.bfloat16 if task.half and not task.full else torch.float32
    model = load_model(request.checkpoint, dtype=dtype).to(prepared.device)
    return PartRun(model, task, folder, progress)


def _steps(request: TrainRequest, part: PartRun, prepared: Prepared, run: RunFolder) -> int:
    """Return how many steps to train: as noted by an earlier start, as asked, or as measured."""
    noted = run.steps(MAIN)
    if noted is not None:
        return noted
    steps = request.steps or _one_pass(prepared)
    if request.minutes is not None:
        steps = _in_minutes(request.minutes, part.cost())
    if prepared.is_first_process:
        run.note_steps(MAIN, steps)
    return steps


def _copy_tokenizer(place: Path, model: Path) -> None:
    """Put the tokenizer's files next to the weights of a model that was trained."""
    folder = find_tokenizer(place).parent
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            with inner_file(model / name) as part:
                shutil.copyfile(folder / name, part)


def _one_pass(prepared: Prepared) -> int:
    """Return the steps of one pass over the text, within the limits of the defaults."""
    steps = -(-prepared.train.tokens // prepared.tokens_a_step)
    return min(max(steps, defaults.LEAST_STEPS), defaults.MOST_STEPS)


def _in_minutes(minutes: float, cost: StepCost) -> int:
    return max(round(60 * minutes / cost.seconds), 1)


def _plan(part: PartRun, steps: int, prepared: Prepared) -> str:
    learning = sum(each.trainable for each in part.parts)
    passes = steps * prepared.tokens_a_step / max(prepared.train.tokens, 1)
    return (
        f"training the {part.task.learns}: {learning:,} parameters, {counted(steps, 'step')} of "
        f"{prepared.tokens_a_step:,} tokens, {passes:.2g} times the text"
    )


def _dry_run(
    request: TrainRequest, model: ModelShape, state: Any, progress: Progress
) -> TrainResult:
    """Return what a run would take: steps are timed on random ids with a small table of zeros."""
    with tempfile.TemporaryDirectory(prefix="engram-train-") as folder:
        here = Workspace(Path(folder))
        prepared, table_bytes = stand_in(request, model, here, state, progress)
        task = task_of(request, prepared)
        part = _open(request, task, prepared, here.folder / "checkpoints", progress)
        cost = part.cost()
        steps = request.steps or _one_pass(prepared)
        if request.minutes is not None:
            steps = _in_minutes(request.minutes, cost)
    return TrainResult(
        checkpoint=request.checkpoint,
        out=request.out,
        bundle=None,
        adapter=None,
        model=None,
        outcome=None,
        steps=steps,
        tokens_a_step=prepared.tokens_a_step,
        cost=cost,
        memory_bytes=cost.bytes + table_bytes,
        is_first_process=state.is_main_process,
    )
