"""A Trainer callback: a bundle for each checkpoint, loaded on resume, and figures of the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from engram_cli.formats.bundle import BUNDLE_NAME
from engram_cli.runtime.carried import memory_of
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules.base import MemoryModule, Rows
from engram_cli.runtime.restoring import load
from engram_cli.runtime.saving import save_engram

_MOST_ROWS = 4096  # of a step, whose norms are looked at


class EngramCallback(TrainerCallback):
    """Saves, loads and watches the memory of the model that a Trainer trains.

    - Each checkpoint gets a bundle in `engram`, and a Trainer that resumes from it loads it.
    - Logs get, for each layer, `engram/gate_L` (mean of the gates in 0..1), `engram/row_norm_L`
      (mean norm of the rows that the step changed) and `engram/touched_L` (share of all rows that
      some step has changed since training began). L is the number of the decoder layer. Of rows
      that are distributed over processes, those of the first one.

    `name`: of the memory, where the model carries several. `saves`: write the bundle always, never,
    or (None) where saving the model did not.
    """

    def __init__(self, name: str | None = None, *, saves: bool | None = None) -> None:
        self.name = name
        self.saves = saves
        self.figures: dict[str, float] = {}
        self._watched: list[Any] = []
        self._touched: dict[int, Tensor] = {}
        self._listens = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Load the bundle of the checkpoint that training resumes from, and begin to watch."""
        model = given["model"]
        memory = memory_of(model, self.name)
        if self.saves is not False and state.global_step:
            bundle = _checkpoint(args, state) / BUNDLE_NAME
            if bundle.is_dir():
                load(model, bundle, name=self.name)
        self._touched = {
            layer: torch.zeros(len(rows.weight), dtype=torch.bool, device=rows.weight.device)
            for layer, rows in _tables(memory).items()
        }
        self._watched = [
            module.register_forward_hook(self._listener(memory.spec.index(int(layer))))
            for layer, module in memory.layers.items()
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Look at the gates of the steps that are logged."""
        every = max(int(state.logging_steps or 1), 1)
        self._listens = (state.global_step + 1) % every == 0
        if self._listens:
            self.figures = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Note which rows the step changes."""
        memory = memory_of(given["model"], self.name)
        with torch.no_grad():
            for layer, rows in _tables(memory).items():
                if rows.weight.grad is not None:
                    self._note(memory.spec.index(layer), layer, rows.weight)

    def _note(self, place: int, layer: int, weight: nn.Parameter) -> None:
        gradient = weight.grad
        assert gradient is not None
        touched = self._touched[layer]
        if gradient.is_sparse:
            changed = gradient._indices()[0]
            touched[changed] = True
        elif self._listens:  # a scan of the whole table
            changed = gradient.any(dim=1).nonzero()[:, 0]
            touched[changed] = True
        if self._listens:
            some = weight[changed[:_MOST_ROWS]].float()
            self.figures[f"engram/row_norm_{place}"] = some.norm(dim=1).mean().item()
            self.figures[f"engram/touched_{place}"] = touched.float().mean().item()

    def _listener(self, place: int) -> Any:
        def listen(module: MemoryModule, args: Any, output: Any) -> None:
            if not self._listens or not module.training:
                return
            hidden, rows = args[:2]
            with torch.no_grad():
                streams = hidden.reshape(*hidden.shape[:2], module.streams, -1)
                gates = module.gates(streams.to(module.anchor.device), module.vectors(rows))
                self.figures[f"engram/gate_{place}"] = gates.float().mean().item()

        return listen

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **given: Any
    ) -> None:
        """Add the figures to the logs of a step, and to `state.log_history`."""
        if logs is None or "loss" not in logs:
            return
        rounded = {name: round(value, 6) for name, value in sorted(self.figures.items())}
        logs.update(rounded)
        if state.log_history:
            state.log_history[-1].update(rounded)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the bundle of the checkpoint that was just written."""
        bundle = _checkpoint(args, state) / BUNDLE_NAME
        if self.saves or (self.saves is None and not bundle.is_dir()):
            save_engram(given["model"], bundle, name=self.name, force=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Stop watching."""
        for handle in self._watched:
            handle.remove()
        self._watched = []


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _tables(memory: Memory) -> dict[int, Rows]:
    """Return the tables that learn, by layer."""
    found = {
        int(layer): module.multi_head_embedding.embedding
        for layer, module in memory.layers.items()
        if isinstance(module, MemoryModule)
    }
    return {
        layer: rows
        for layer, rows in found.items()
        if isinstance(rows, Rows) and rows.weight.requires_grad
    }
