"""One training run: its Trainer, what a step costs, and the run itself, resumed if it was cut."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from engram_cli.progress import Progress
from engram_cli.runtime.carried import memories
from engram_cli.training import defaults
from engram_cli.training.callback import EngramCallback
from engram_cli.training.optimiser import make_optimiser
from engram_cli.training.results import Course, Evaluation, StepCost, Task
from engram_cli.training.trainer import EngramTrainer, WholeCheckpoints, newest_checkpoint
from engram_cli.training.windows import Windows

_TIMED, _UNTIMED = 3, 1  # steps


class _Report(TrainerCallback):
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

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        loss = given["metrics"]["eval_loss"]
        self.progress.note(f"step {state.global_step:,}: held-out loss {loss:.4f} on a sample")


def make_trainer(
    model: nn.Module,
    task: Task,
    steps: int,
    texts: tuple[Windows, Windows],
    folder: Path,
    progress: Progress,
) -> EngramTrainer:
    """Return the Trainer of a run; `texts`: to train on, and held out. Checkpoints in `folder`."""
    arguments = _arguments(task, steps, folder)
    if task.gradient_checkpointing:
        _checkpoint_activations(model)
    callbacks: list[TrainerCallback] = [EngramCallback(saves=True)] if memories(model) else []
    callbacks += [WholeCheckpoints(), _Report(progress)]
    callbacks.append(EarlyStoppingCallback(task.patience))
    trainer = EngramTrainer(
        model,
        arguments,
        saves_model=task.full or task.lora is not None,
        train_dataset=texts[0],
        eval_dataset=texts[1],
        optimizers=(make_optimiser(model, rows=task.row_optimiser, **task.rates), None),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(task: Task, steps: int, folder: Path) -> TrainingArguments:
    every = -(-steps // defaults.EVALUATIONS)
    world = dist.get_world_size() if dist.is_initialized() else 1
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=task.micro_batch,
        per_device_eval_batch_size=task.micro_batch,
        gradient_accumulation_steps=task.accumulated,
        lr_scheduler_type=defaults.SCHEDULE,
        warmup_steps=round(defaults.WARM_UP * steps),
        max_grad_norm=defaults.CLIP,
        bf16=task.half,
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
        use_cpu=task.cpu,
        # Of a memory alone every weight is used in every step; experts of a model may not be.
        ddp_find_unused_parameters=task.full or task.lora is not None,
        ddp_backend="gloo" if task.cpu and world > 1 else None,
        restore_callback_states_from_checkpoint=True,
        seed=task.seed,
        data_seed=task.seed,
    )
    if arguments.device.type == "cpu":  # transformers 5.0 resumes on "cpu:0", torch knows no such
        arguments._setup_devices = torch.device("cpu")
    if world == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # no DataParallel, which copies the model
    return arguments


def _checkpoint_activations(model: Any) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:  # before transformers 5.20 or so
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        enable()


def time_steps(trainer: EngramTrainer, task: Task, progress: Progress) -> StepCost:
    """Return what a step costs, measured on a few that change nothing.

    Their learning rate is 0 and their optimiser's state is thrown away. The slowest process counts.
    """
    model: Any = trainer.model
    data: Any = trainer.train_dataset
    device = trainer.args.device
    rates = dict.fromkeys(task.rates, 0.0)
    optimiser = make_optimiser(model, rows=task.row_optimiser, **rates)
    size = task.micro_batch
    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model.train()
    progress.start("measuring steps", _UNTIMED + _TIMED, "steps")
    for step in range(_UNTIMED + _TIMED):
        begin = time.perf_counter()
        for part in range(task.accumulated):
            first = (step * task.accumulated + part) * size
            items = [data[place % len(data)] for place in range(first, first + size)]
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
        progress.advance(1)
    timed = times[_UNTIMED:]
    middle = median(timed)
    figures = [middle, max(timed) - min(timed), _peak_bytes(device)]
    found = torch.tensor(figures, dtype=torch.float64)
    if dist.is_initialized():
        found = found.to(device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    seconds, spread, peak = found.tolist()
    return StepCost(seconds=seconds, spread=spread / seconds, bytes=int(peak))


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def train(trainer: EngramTrainer, progress: Progress) -> Course:
    """Train, from the newest whole checkpoint if there is one; leave the best weights in the model.

    A run that was cut after its last step is not trained again.
    """
    newest = newest_checkpoint(Path(str(trainer.args.output_dir)))
    set_seed(trainer.args.seed)
    begin, done = time.perf_counter(), 0
    with quiet():
        if newest is None:
            trainer.train()
        else:
            trainer.state = TrainerState.load_from_json(str(newest.path / TRAINER_STATE_NAME))
            done = trainer.state.global_step
            if newest.finished:
                trainer._load_best_model()
            else:
                progress.note(f"resuming from {newest.path}")
                trainer.train(resume_from_checkpoint=str(newest.path))
    state = trainer.state
    losses = {
        int(entry["step"]): float(entry["eval_loss"])
        for entry in state.log_history
        if "eval_loss" in entry
    }
    return Course(
        steps=state.global_step,
        best=min(losses, key=lambda step: (losses[step], step)),
        early=state.global_step < state.max_steps,
        timed_steps=state.global_step - done,
        seconds=time.perf_counter() - begin,
        evaluations=tuple(Evaluation(step=step, loss=loss) for step, loss in losses.items()),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing notes of its own, for the length of the block."""
    level = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        with warnings.catch_warnings():
            # Of checkpoints within a second, which are then sorted by their numbers.
            warnings.filterwarnings("ignore", "mtime may not be reliable", UserWarning)
            yield
    finally:
        logging.set_verbosity(level)
