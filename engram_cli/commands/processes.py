"""Joins the processes that torchrun or accelerate have started; each has the whole model."""

from __future__ import annotations

import os
import warnings
from typing import Any

from engram_cli.errors import InputError

# What `accelerate launch` sets for ways that divide a model over processes.
_DIVIDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism config",
}
_TRUE = ("1", "true", "yes", "on")


def join_processes(device: str | None) -> Any:
    """Return accelerate's state of this process; `device`: "cpu" keeps it off the GPUs.

    Without a GPU several processes talk over gloo. Raises InputError where they were started to
    divide the model: every process of a run has all of it.
    """
    import torch
    from accelerate import PartialState

    for name, way in _DIVIDED.items():
        if os.environ.get(name, "").lower() in _TRUE:
            raise InputError(
                f"{way} divides a model over processes, and engram needs all of it in each",
                f"start it with torchrun --nproc-per-node N -m engram_cli, or without {way}",
            )
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:  # accelerate has chosen the device
        warnings.filterwarnings("ignore", r"barrier\(\): using the device", UserWarning)
    return PartialState(cpu=device == "cpu" or (several and not torch.cuda.is_available()))


def leave_processes() -> None:
    """Part from the other processes, if there are any: NCCL complains where a program just ends."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
