"""One training run: its Trainer, how long a step takes, and the run itself, resumed if it was cut."""

from __future__ import annotations

import time
from contextlib import contextmanager
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments
from transformers import set_seed
from transformers.utils import logging

from engram_cli.progress import Progress
from engram_cli.runtime.attach import memories
from engram_cli.training import defaults
from engram_cli.training.callback import EngramCallback
from engram_cli.training.optimiser import make_optimiser
from engram_cli.training.trainer import EngramTrainer, WholeCheckpoints, newest_checkpoint
from engram_cli.training.windows import Windows

_TIMED, _UNTIMED = 3, 1  # steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train: see `TrainRequest`. `accumulated`: batches of `micro_batch` in a step."""

    steps: int
    micro_batch: int
    accumulated: int
    patience: int
    rates: dict[str, float]
    row_optimiser: str
    gradient_checkpointing: bool
    half: bool
    cpu: bool
    seed: int
    saves_model: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Measured on a few steps: `seconds` (median), the `spread` of them as a share, peak bytes.

    `bytes`: of the GPU, or on a CPU of the process, while it computed.
    """

    seconds: float
    spread: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a run came to: `held_out` are (step, loss) on the way; `best` the step that was kept."""

    steps: int
    best: int
    early: bool
    seconds: float
    held_out: tuple[tuple[int, float], ...]


class _Report(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Tells the progress, and evaluates and saves at the last step too."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.progress.start("training", state.max_steps, "steps")
        self.progress.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.progress.advance(1)
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **given: Any
    ) -> None:
        loss = metrics["eval_loss"]
        self.progress.note(f"step {state.global_step:,}: held-out loss {loss:.4f} on a sample")


def make_trainer(
    model: nn.Module,
    settings: Settings,
    train: Windows,
    held_out: Windows,
    folder: Path,
    progress: Progress,
) -> EngramTrainer:
    """Return the Trainer of a run whose checkpoints are in `folder`."""
    every = -(-settings.steps // defaults.EVALUATIONS)
    world = dist.get_world_size() if dist.is_initialized() else 1
    arguments = TrainingArguments(
        str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro_batch,
        per_device_eval_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.accumulated,
        lr_scheduler_type=defaults.SCHEDULE,
        warmup_steps=round(defaults.WARM_UP * settings.steps),
        max_grad_norm=defaults.CLIP,
        bf16=settings.half,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        prediction_loss_only=True,
        remove_unused_columns=False,
        logging_steps=max(every // 10, 1),
        report_to="none",
        disable_tqdm=True,
        use_cpu=settings.cpu,
        ddp_backend="gloo" if settings.cpu and world > 1 else None,
        seed=settings.seed,
        data_seed=settings.seed,
    )
    if world == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # no DataParallel, which copies the model
    if settings.gradient_checkpointing:
        _checkpoint_activations(model)
    callbacks: list[TrainerCallback] = [EngramCallback()] if memories(model) else []
    callbacks += [WholeCheckpoints(), _Report(progress)]
    callbacks.append(EarlyStoppingCallback(settings.patience))
    trainer = EngramTrainer(
        model,
        arguments,
        saves_model=settings.saves_model,
        train_dataset=train,
        eval_dataset=held_out,
        optimizers=(make_optimiser(model, rows=settings.row_optimiser, **settings.rates), None),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _checkpoint_activations(model: Any) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:  # before transformers 5.20 or so
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        enable()


def time_steps(trainer: EngramTrainer, settings: Settings) -> StepCost:
    """Return what a step costs, measured on a few that change nothing.

    Their learning rate is 0 and their optimiser's state is thrown away. The slowest process counts.
    """
    model, device = trainer.model, trainer.args.device
    rates = dict.fromkeys(settings.rates, 0.0)
    optimiser = make_optimiser(model, rows=settings.row_optimiser, **rates)
    size = settings.micro_batch
    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model.train()
    for step in range(_UNTIMED + _TIMED):
        begin = time.perf_counter()
        for part in range(settings.accumulated):
            first = (step * settings.accumulated + part) * size
            items = [trainer.train_dataset[i % len(trainer.train_dataset)] for i in range(first, first + size)]
            batch = trainer._prepare_inputs(trainer.data_collator(items))
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, batch)
            trainer.accelerator.backward(loss)
        trainer.accelerator.clip_grad_norm_(model.parameters(), defaults.CLIP)
        optimiser.step()
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    timed = times[_UNTIMED:]
    middle = median(timed)
    found = torch.tensor([middle, max(timed) - min(timed), _peak_bytes(device)], dtype=torch.float64)
    if dist.is_initialized():
        found = found.to(device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    seconds, spread, peak = found.tolist()
    return StepCost(seconds=seconds, spread=spread / seconds, bytes=int(peak))


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(trainer: EngramTrainer, progress: Progress) -> Course:
    """Train, from the newest whole checkpoint if there is one; the best weights are in the model."""
    folder = Path(trainer.args.output_dir)
    newest = newest_checkpoint(folder)
    if newest is not None:
        progress.note(f"resuming from {newest}")
    set_seed(trainer.args.seed)
    begin = time.perf_counter()
    with quiet():
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    state = trainer.state
    losses = {
        int(entry["step"]): float(entry["eval_loss"])
        for entry in state.log_history
        if "eval_loss" in entry
    }
    best = min(losses, key=lambda step: (losses[step], step))
    return Course(
        steps=state.global_step,
        best=best,
        early=state.global_step < state.max_steps,
        seconds=time.perf_counter() - begin,
        held_out=tuple(losses.items()),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing notes of its own, for the length of the block."""
    level = logging.get_verbosity()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)  # type: ignore[no-untyped-call]
