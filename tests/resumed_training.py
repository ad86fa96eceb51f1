"""Trains in stages of so many processes (gloo), all but the last cut: run by test_sharded_rows.py.

    python resumed_training.py CHECKPOINT TRAIN HELD_OUT BUNDLE OUT STAGE ...

A stage is WORLD:PLACEMENT:STEP; it ends after STEP as if it had been killed, with 0 at the end.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.train.command import train

OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "steps": 6,
    "batch": 6,
    "length": 16,
    "rows_lr": 0.01,  # differences of rounding grow with the rates
    "lr": 0.01,
}


class Killed(Exception):
    """The run ended without warning."""


class Killer(TrainerCallback):
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def process(rank: int, world: int, port: int, placement: str, step: int, names: list[str]) -> None:
    """What each process of a stage does."""
    torch.set_num_threads(1)
    if world > 1:
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {name: str(value) for name, value in where.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from engram_cli.training import part

    made = part.make_trainer

    def killed(*args: Any) -> Any:
        trainer = made(*args)
        trainer.callback_handler.callbacks.insert(0, Killer(step))
        return trainer

    part.make_trainer = killed
    checkpoint, text, held_out, bundle, out = map(Path, names)
    request = TrainRequest(
        checkpoint=checkpoint,
        sources=(text,),
        held_out=(held_out,),
        bundle=bundle,
        out=out,
        placement=placement,
        **OPTIONS,
    )
    try:
        train(request)
    except Killed:
        if not step:
            raise
    else:
        assert not step, "it was to be killed"


if __name__ == "__main__":
    import engram_cli.training.part  # noqa: F401  # before forking

    for stage in sys.argv[6:]:
        size, place, last = stage.split(":")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            found = free.getsockname()[1]
        torch.multiprocessing.start_processes(
            process,
            (int(size), found, place, int(last), sys.argv[1:6]),
            nprocs=int(size),
            start_method="fork",
        )
