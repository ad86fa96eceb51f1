"""What a training run is asked to do and what it came to, as plain data without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What learns from which texts, and how; one part of a run.

    `bundle`: None trains no memory. `lora`: the rank of an adapter, None for none. `train`,
    `held_out`: packed files, whose documents `end` ends, and `documents` of the held-out ones;
    `apart`: the same token, where positions begin again after it. A step of one process is
    `accumulated` batches of `micro_batch` sequences of `length` tokens. `sample`, `final`: held-out
    tokens of an evaluation on the way, and at the end. `rates` are those of `make_optimiser`, by
    name. `placement` of the rows: "hbm", or "shard" over the processes. `half`: compute in
    bfloat16.
    """

    bundle: Path | None
    rows_trainable: bool
    lora: int | None
    full: bool
    train: Path
    held_out: Path
    end: int | None
    documents: int
    apart: int | None
    length: int
    micro_batch: int
    accumulated: int
    sample: int
    final: int
    patience: int
    rates: dict[str, float]
    row_optimiser: str
    placement: str
    gradient_checkpointing: bool
    half: bool
    cpu: bool
    seed: int

    @property
    def learns(self) -> str:
        """What learns, in words."""
        named = ("memory", self.bundle), ("LoRA", self.lora), ("model", self.full)
        return " and ".join(name for name, what in named if what)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Measured on a few steps: `seconds` (median), the `spread` of them as a share, peak bytes.

    `bytes`: of the GPU, or on a CPU of the process.
    """

    seconds: float
    spread: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The held-out `loss` of a sample after `step` steps, in nats per token."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a run came to: its evaluations, the step whose weights were kept, its time.

    `early`: it ended because the held-out loss fell no more. `timed_steps`, `seconds`: of its last
    start, without those that this resumed; 0 where nothing was left to do.
    """

    steps: int
    timed_steps: int
    best: int
    early: bool
    seconds: float
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossLine:
    """The held-out loss of a model in nats per token, and how far it is from the model alone.

    `low`, `high`: the 95 % interval of the difference over documents; None where it is not known.
    """

    name: str
    loss: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    course: Course | None = None

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the model: its numbers, and those that learn."""

    name: str
    total: int
    trainable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that a run found, as its folder keeps it. `tokens_a_step`: of all processes.

    `trained_share`: of the held-out tokens, those in documents that are in the training text too;
    None where that is not known.
    """

    train_tokens: int
    held_out_tokens: int
    held_out_documents: int
    tokens_a_step: int
    parts: tuple[Part, ...]
    lines: tuple[LossLine, ...]
    trained_share: float | None = None
