"""One part of a training run: a model with what learns in it, from the first loss to the files."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engram_cli.progress import Progress
from engram_cli.runtime.attach import activate, deactivate
from engram_cli.runtime.carried import memories
from engram_cli.runtime.evaluation import evaluate_losses
from engram_cli.runtime.evaluation.sums import PartLoss
from engram_cli.runtime.pretrained import set_aside
from engram_cli.runtime.saving import save_engram
from engram_cli.runtime.training import parameters_summary
from engram_cli.training.model import prepare_model
from engram_cli.training.results import LossLine, Part, StepCost, Task
from engram_cli.training.run import make_trainer, time_steps, train
from engram_cli.training.windows import Windows, documents

ALONE = "model alone"


class PartRun:
    """The model of a `Task` and its two texts; `model` is loaded and on its device."""

    def __init__(self, model: Any, task: Task, progress: Progress) -> None:
        self.task, self.progress = task, progress
        self.model = prepare_model(
            model,
            bundle=task.bundle,
            rows_trainable=task.rows_trainable,
            placement=task.placement,
            lora=task.lora,
            full=task.full,
            seed=task.seed,
        )
        most = max(task.sample // task.length, 1)
        self.texts = (
            Windows(task.train, task.length, apart=task.apart),
            Windows(task.held_out, task.length, apart=task.apart, most=most),
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the model, and how much of each learns."""
        return tuple(
            Part(name=each.name, total=each.total, trainable=each.trainable)
            for each in parameters_summary(self.model).parts
        )

    def cost(self, folder: Path) -> StepCost:
        """Return what a step costs, measured without changing anything."""
        trainer = make_trainer(self.model, self.task, 1, self.texts, folder, self.progress)
        return time_steps(trainer, self.task)

    def trained(self, steps: int, folder: Path) -> list[LossLine]:
        """Train, and return the held-out losses: of the model alone, before if other, and after."""
        before = self._before()
        trainer = make_trainer(self.model, self.task, steps, self.texts, folder, self.progress)
        course = train(trainer, self.progress)
        self.model.eval()
        after = self._after()
        if self.task.full:  # the model alone is not there any more
            lines = [LossLine(name=ALONE, loss=before["bare"].loss("bare"))]
            loss = after.loss(self._own(after))
            own = LossLine(name=self.task.learns, loss=loss, difference=loss - lines[0].loss)
        else:
            lines = [_line(ALONE, after, "bare")]
            own = _line(self.task.learns, after, self._own(after))
        if "memory" in before:
            lines.append(_line("before training", before["memory"], "memory"))
        return [*lines, replace(own, course=course)]

    def _before(self) -> dict[str, PartLoss]:
        """Return the losses that are gone after training, by variant."""
        found = {}
        if self.task.full:
            found["bare"] = self._losses(("bare",))
        if self.task.bundle is not None and not self._is_fresh():
            found["memory"] = self._losses(("bare", "memory"))
        return found

    def _after(self) -> PartLoss:
        learned = ("lora", self.task.lora), ("memory", self.task.bundle)
        own = "_".join(name for name, what in learned if what)
        if self.task.full:
            return self._losses((own or "bare",))
        return self._losses(("bare", own))

    def _own(self, losses: PartLoss) -> str:
        return list(losses.units)[-1]

    def _losses(self, variants: tuple[str, ...]) -> PartLoss:
        task = self.task
        self.progress.note(f"measuring the loss on held-out documents: {', '.join(variants)}")
        texts = documents(task.held_out, task.end, task.documents, task.final, cut=task.length)
        with self._autocast():
            return evaluate_losses(
                self.model,
                texts,
                context=task.length,
                variants=variants,
                batch_tokens=max(task.micro_batch, 1) * task.length,
                shared=dist.is_initialized(),
            )

    def _is_fresh(self) -> bool:
        """Return whether the memory adds nothing yet, to the bit."""
        ids = self.texts[1][0]["input_ids"][None].to(self.model.device)
        self.model.eval()
        with torch.no_grad(), self._autocast():
            own = self.model(ids).logits
            deactivate(self.model)
            bare = self.model(ids).logits
            activate(self.model)
        return torch.equal(own, bare)

    def _autocast(self) -> Any:
        if not self.task.half:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    def write(self, *, bundle: Path, adapter: Path, model: Path) -> None:
        """Write what learned. Every process calls it; the first one writes."""
        if memories(self.model):
            save_engram(self.model, bundle, force=True)
        if dist.is_initialized() and dist.get_rank():
            return
        with set_aside(self.model), warnings.catch_warnings():
            # PEFT looks for the config of the model in a place where a local one has none.
            warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)
            if self.task.lora is not None:
                self.model.save_pretrained(adapter)
            if self.task.full:
                self.model.save_pretrained(model)


def _line(name: str, losses: PartLoss, variant: str) -> LossLine:
    loss = losses.loss(variant)
    if name == ALONE:
        return LossLine(name=name, loss=loss)
    gap = losses.interval(variant, "bare")
    return LossLine(name=name, loss=loss, difference=gap.mean, low=gap.low, high=gap.high)
