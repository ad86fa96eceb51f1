"""One part of a training run: a model with what learns in it, from the first loss to the files."""

from __future__ import annotations

import warnings
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engram_cli.errors import EngramError
from engram_cli.files import canonical_json, inner_file, read_json
from engram_cli.progress import Progress
from engram_cli.runtime.attach import activate, deactivate
from engram_cli.runtime.carried import memories
from engram_cli.runtime.evaluation import document_losses
from engram_cli.runtime.evaluation.by_document import DocumentLosses
from engram_cli.runtime.evaluation.sums import PartLoss
from engram_cli.runtime.pretrained import set_aside
from engram_cli.runtime.saving import save_engram
from engram_cli.runtime.training import parameters_summary
from engram_cli.training.model import prepare_model
from engram_cli.training.results import Course, LossLine, Part, StepCost, Task
from engram_cli.training.run import make_trainer, time_steps, train
from engram_cli.training.windows import Windows, documents
from engram_cli.typed_json import as_json, read_json_as

ALONE = "model alone"
_SHOWN = {
    "bare": "the model alone",
    "memory": "with its memory",
    "lora": "with LoRA",
    "lora_memory": "with its memory and LoRA",
}


class PartRun:
    """The model of a `Task` and its two texts; `model` is loaded and on its device.

    `folder`: of its checkpoints, and of the losses that were measured.
    """

    def __init__(self, model: Any, task: Task, folder: Path, progress: Progress) -> None:
        self.task, self.folder, self.progress = task, folder, progress
        self._earlier: DocumentLosses | None = None
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

    def cost(self) -> StepCost:
        """Return what a step costs, measured without changing anything."""
        trainer = make_trainer(self.model, self.task, 1, self.texts, self.folder, self.progress)
        return time_steps(trainer, self.task, self.progress)

    def train(self, steps: int) -> Course:
        """Train, or resume; the losses that are gone afterwards are measured before."""
        self._earlier = self._before()
        trainer = make_trainer(self.model, self.task, steps, self.texts, self.folder, self.progress)
        course = train(trainer, self.progress)
        self.model.eval()
        return course

    def lines(self, course: Course) -> list[LossLine]:
        """Return the held-out losses: of the model alone, before training if other, and after.

        Each pass over the held-out text is noted in the folder, and not made again.
        """
        before, after = self._earlier, self._after()
        if self.task.full:  # the model alone is not there any more
            assert before is not None
            after = before.only("bare").joined(after.only(after.variants[-1], "trained"))
        whole = after.whole()
        lines = [_line(ALONE, whole, "bare")]
        if before is not None and "memory" in before.variants:
            lines.append(_line("before training", before.whole(), "memory"))
        own = _line(self.task.learns, whole, after.variants[-1])
        return [*lines, replace(own, course=course)]

    def _before(self) -> DocumentLosses | None:
        """Return the losses that are gone after training, None where there are none."""
        kept = self._kept("before")
        if kept is not None:
            return kept
        if self.task.bundle is not None and not self._is_fresh():
            return self._losses("before", ("bare", "memory"))
        return self._losses("before", ("bare",)) if self.task.full else None

    def _after(self) -> DocumentLosses:
        kept = self._kept("after")
        if kept is not None:
            return kept
        learned = ("lora", self.task.lora), ("memory", self.task.bundle)
        own = "_".join(name for name, what in learned if what)
        return self._losses("after", (own or "bare",) if self.task.full else ("bare", own))

    def _losses(self, name: str, variants: tuple[str, ...]) -> DocumentLosses:
        """Measure the losses of some variants, and note them."""
        task = self.task
        shown = " and ".join(_SHOWN[each] for each in variants)
        self.progress.note(f"measuring the loss on held-out documents: {shown}")
        world = dist.get_world_size() if dist.is_initialized() else 1
        most = task.documents, task.final
        texts = list(documents(task.held_out, task.end, *most, cut=task.length))  # mapped
        self.progress.start("held-out tokens", sum(len(each) - 1 for each in texts), "tokens")
        with self._autocast():
            found = document_losses(
                self.model,
                texts,
                context=task.length,
                variants=variants,
                batch_tokens=max(task.micro_batch, 1) * task.length,
                shared=dist.is_initialized(),
                advance=lambda tokens: self.progress.advance(tokens * world),
            )
        if self._is_first:
            with inner_file(self._note_of(name)) as part:
                part.write_bytes(canonical_json(as_json(found)))
        return found

    def _kept(self, name: str) -> DocumentLosses | None:
        """Return losses that an earlier start has noted; the first process decides for all."""
        found: list[DocumentLosses | None] = [None]
        if self._is_first:
            path = self._note_of(name)
            with suppress(EngramError, ValueError):
                found = [read_json_as(DocumentLosses, read_json(path, "losses"), str(path))]
        if dist.is_initialized():
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def _note_of(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"losses-{name}.json"

    @property
    def _is_first(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

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
        if not self._is_first:
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
