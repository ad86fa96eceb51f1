"""transformers' Trainer for a model with a memory: sparse rows, several processes, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from engram_cli.files import canonical_json, inner_file, read_json
from engram_cli.formats.bundle import BUNDLE_NAME
from engram_cli.runtime.carried import memories
from engram_cli.runtime.pretrained import set_aside
from engram_cli.runtime.restoring import load
from engram_cli.runtime.sharding.trained.rows import ShardedRows
from engram_cli.runtime.sharding.trained.states import (
    keep_own_states,
    load_row_states,
    save_row_states,
)
from engram_cli.runtime.training import average_row_gradients, row_modules
from engram_cli.training.optimiser import row_optimiser

IGNORED = "_ddp_params_and_buffers_to_ignore"  # DDP reads it from the module that it wraps
WHOLE = "engram-checkpoint.json"  # the last file of a checkpoint
ROW_STATES = "engram-row-states"  # in a checkpoint, of rows over processes


class EngramTrainer(Trainer):
    """A Trainer whose checkpoints have what learns: the memory's bundle, an adapter, a backbone.

    Rows are left out of DistributedDataParallel, since NCCL does not add up sparse gradients; they
    are averaged before they are clipped, unless they are distributed over the processes.
    `saves_model`: the model, or PEFT's adapter, is trained and saved too. The bundle is
    `EngramCallback`'s.
    """

    def __init__(self, *args: Any, saves_model: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self.saves_model = saves_model
        module: Any = self.model
        self._module: nn.Module = module
        self.has_memory = bool(memories(self._module))
        tables = row_modules(self._module).values() if self.has_memory else ()
        self.is_sharded = any(isinstance(table, ShardedRows) for table in tables)
        if self.has_memory and self.args.world_size > 1:
            rows = {id(table.weight) for table in tables}
            names = [name for name, p in self._module.named_parameters() if id(p) in rows]
            setattr(self._module, IGNORED, [*getattr(self._module, IGNORED, ()), *names])

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        """Train with the batches of this run: transformers 5.0 takes those of the checkpoint.

        They differ where a run is resumed with another number of processes or another micro-batch.
        """
        self._train_batch_size = self.args.train_batch_size
        options["batch_size"] = self._train_batch_size
        return super()._inner_training_loop(*args, **options)

    def training_step(self, model: nn.Module, *args: Any, **options: Any) -> Tensor:
        """Take a forward and backward pass, and average the rows' gradients before a step."""
        loss: Tensor = super().training_step(model, *args, **options)
        if self.has_memory and self.args.world_size > 1 and self.accelerator.sync_gradients:
            average_row_gradients(self._module)
        return loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save them; the state of rows over processes is streamed into a folder of its own."""
        super()._save_optimizer_and_scheduler(output_dir)
        own = row_optimiser(self.optimizer) if self.is_sharded else None
        if own is not None:
            save_row_states(own, self._module, Path(output_dir) / ROW_STATES, force=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load them, whatever number of processes saved the state of the rows."""
        super()._load_optimizer_and_scheduler(checkpoint)
        own = row_optimiser(self.optimizer) if self.has_memory else None
        if checkpoint is None or own is None:
            return
        if (Path(checkpoint) / ROW_STATES).is_dir():
            load_row_states(own, self._module, Path(checkpoint) / ROW_STATES)
        elif self.is_sharded:
            keep_own_states(own, self._module)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the model or the adapter if it learns; a frozen one is where it was loaded from."""
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if self.saves_model:
            with set_aside(self._module):
                super()._save(str(folder), state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        """Load what the checkpoint has of the model, and its bundle."""
        if self.saves_model:
            with set_aside(self._module):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.has_memory:
            load(self._module, Path(resume_from_checkpoint) / BUNDLE_NAME)

    def _load_best_model(self) -> None:
        self.accelerator.wait_for_everyone()  # the first process may still write its bundle
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class WholeCheckpoints(TrainerCallback):
    """Marks each checkpoint when all of it is written: one without the mark is not resumed from."""

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the mark, which says whether training is over."""
        if not state.is_world_process_zero:
            return
        finished = control.should_training_stop or state.global_step >= state.max_steps
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        with inner_file(folder / WHOLE) as part:
            part.write_bytes(canonical_json({"finished": bool(finished)}))


@dataclass(frozen=True, slots=True)
class WholeCheckpoint:
    """A checkpoint that is whole, and whether nothing was left to train."""

    path: Path
    finished: bool


def newest_checkpoint(folder: Path) -> WholeCheckpoint | None:
    """Return the newest whole checkpoint in a folder, None without one."""
    found = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal() and (path / WHOLE).is_file()
    ]
    if not found:
        return None
    newest = max(found)[1]
    said = read_json(newest / WHOLE, "the mark of a checkpoint")
    return WholeCheckpoint(newest, said.get("finished") is True)
