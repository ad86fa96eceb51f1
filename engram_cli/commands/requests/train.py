"""The request of train: which model learns what, from which text, for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from engram_cli.commands.geometry import LAYOUT_NAMES, Geometry
from engram_cli.commands.requests.corpus import CorpusFields
from engram_cli.commands.requests.options import (
    WORKSPACE,
    Checkpoint,
    Group,
    Option,
    Rule,
    Verify,
    revision_of,
)
from engram_cli.training import defaults
from engram_cli.training.defaults import ON_CPU, ON_GPU

_LEARNS, _BATCH, _RATES = "What learns", "Steps and batches", "Learning rates"


def _rate(what: str) -> Option:
    return Option(f"Learning rate of {what}.", panel=_RATES)


_NEW_TABLE = {  # what is not given suits the model and the text
    "rows_per_head": (
        "Minimum rows per head, one size or one per order: 64k (a row for every "
        f"{defaults.TOKENS_A_ROW} tokens, while the model is large enough)."
    ),
    "layers": "Layers that get a table (the second and the middle one).",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest(CorpusFields):
    """What to train on what.

    `bundle` None makes one from the text, of `geometry` and `dim`; what these leave open suits the
    model and the text. `steps` and `minutes` None: one pass over the text, within limits. `batch`,
    `length`, `micro_batch` None: for the device. `out` is a folder that a run of the same request
    resumes in. `against_lora`: also train an adapter of this rank without a memory, for as many
    steps. With `dry_run` nothing is written.
    """

    checkpoint: Checkpoint
    sources: Annotated[
        tuple[str | Path, ...],
        Option(
            "Files, folders, globs, addresses or org/name of the Hugging Face Hub to train on.",
            argument=True,
            reads="stream",
        ),
    ]
    held_out: Annotated[
        tuple[str | Path, ...],
        Option(
            "Text to measure the loss on, not in the training text. Can be repeated.",
            reads="stream",
        ),
    ]
    revision: Annotated[str | None, revision_of("checkpoint", "the checkpoint")] = None
    out: Annotated[Path, Option("Folder of the run and its results.", short="-o")] = Path(
        "engram-run"
    )
    bundle: Annotated[
        Path | None, Option("Bundle to train (made from the training text).", reads="copy")
    ] = None
    verify: Verify = False
    rows: Annotated[
        str,
        Option(
            "What happens to the rows: trained, or frozen (the gates learn alone).",
            panel=_LEARNS,
            known=("trained", "frozen"),
        ),
    ] = "trained"
    placement: Annotated[
        str,
        Option(
            "Where trained rows lie: hbm (all of them on each GPU), or shard (over the processes "
            "of torchrun, each with its part).",
            panel=_LEARNS,
            known=("hbm", "shard"),
        ),
    ] = "hbm"
    lora: Annotated[
        int | None,
        Option("Also train a LoRA adapter of this rank.", panel=_LEARNS, metavar="RANK", least=1),
    ] = None
    full: Annotated[bool, Option("Also train all weights of the model.", panel=_LEARNS)] = False
    against_lora: Annotated[
        int | None,
        Option(
            "Then train a LoRA adapter of this rank without the memory, to compare.",
            panel=_LEARNS,
            metavar="RANK",
            least=1,
        ),
    ] = None
    steps: Annotated[
        int | None,
        Option(
            f"Number of steps (one pass over the text, {defaults.LEAST_STEPS} to "
            f"{defaults.MOST_STEPS:,}).",
            panel=_BATCH,
            least=1,
        ),
    ] = None
    minutes: Annotated[
        float | None,
        Option(
            "Train for about so many minutes instead; evaluations take more time.", panel=_BATCH
        ),
    ] = None
    batch: Annotated[
        int | None,
        Option(
            f"Sequences per step, of all processes ({ON_GPU.sequences}; {ON_CPU.sequences} on a "
            "CPU).",
            panel=_BATCH,
            least=1,
        ),
    ] = None
    length: Annotated[
        int | None,
        Option(
            f"Tokens per sequence ({ON_GPU.length}; {ON_CPU.length} on a CPU).",
            panel=_BATCH,
            least=8,
        ),
    ] = None
    micro_batch: Annotated[
        int | None,
        Option(
            "Sequences that a device computes at once (what its memory holds).",
            panel=_BATCH,
            least=1,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool, Option("Compute activations again instead of keeping them.", panel=_BATCH)
    ] = False
    patience: Annotated[
        int,
        Option(
            "Stop after this many evaluations without a better one.",
            panel=_BATCH,
            least=1,
        ),
    ] = defaults.PATIENCE
    rows_lr: Annotated[float, _rate("the rows")] = defaults.ROWS_LR
    lr: Annotated[float, _rate("the memory's other weights")] = defaults.DENSE_LR
    lora_lr: Annotated[float, _rate("a LoRA adapter")] = defaults.LORA_LR
    full_lr: Annotated[float, _rate("the model, with --full")] = defaults.FULL_LR
    row_optimiser: Annotated[
        str,
        Option(
            "Optimiser of the rows: adam (8 bytes a value) or adagrad (4 bytes a row).",
            panel=_RATES,
            known=("adam", "adagrad"),
        ),
    ] = "adam"
    device: Annotated[
        str, Option("Where to train: auto (a GPU if there is one) or cpu.", known=("auto", "cpu"))
    ] = "auto"
    train_seed: Annotated[
        int,
        Option("Seed of the order of the text and of new weights.", panel=_BATCH, least=0),
    ] = 0
    geometry: Annotated[Geometry, Group(Geometry, _NEW_TABLE)] = field(default_factory=Geometry)
    dim: Annotated[
        int | None, Option(f"Values per row of a new table ({defaults.DIM}).", least=1)
    ] = None
    dry_run: Annotated[
        bool, Option("Say how much memory and time it takes, and write nothing.")
    ] = False
    folder: Annotated[Path | None, WORKSPACE] = None

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Return the options of a new table, where a bundle is given."""
        return frozenset() if given["bundle"] is None else LAYOUT_NAMES | {"dim"}

    @property
    def is_sharded(self) -> bool:
        """Whether trained rows are distributed over processes."""
        return self.placement == "shard"

    RULES = (
        Rule(
            lambda request: request.verify and request.bundle is None,
            "--verify without --bundle",
            "it reads the bundle that is trained; without one, a new one is made",
        ),
        Rule(
            lambda request: request.is_sharded and request.rows == "frozen",
            "--placement shard with --rows frozen",
            "only rows that learn are distributed here: leave one of them out",
        ),
        Rule(
            lambda request: request.steps is not None and request.minutes is not None,
            "both --steps and --minutes",
            "give one of them",
        ),
        Rule(
            lambda request: request.minutes is not None and not request.minutes > 0,
            "--minutes {0.minutes}",
            "give a number above 0",
        ),
        Rule(
            lambda request: request.full and request.lora is not None,
            "both --full and --lora",
            "an adapter is for a frozen model: give one of them",
        ),
        Rule(
            lambda request: (
                request.bundle is not None and bool(request.geometry.given or request.dim)
            ),
            "--bundle with options of a new table",
            "leave out --bundle, or the options of the layout and --dim",
        ),
        Rule(
            lambda request: not request.held_out,
            "no held-out text",
            "give text that is not in the training text with --held-out",
        ),
        Rule(
            lambda request: (
                not min(request.rows_lr, request.lr, request.lora_lr, request.full_lr) >= 0.0
            ),
            "a learning rate below 0",
            "give 0 or more with --rows-lr, --lr, --lora-lr and --full-lr",
        ),
    )
