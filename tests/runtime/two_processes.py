"""Trains a tiny model in two processes (gloo): run by test_distributed.py as a program.

    python two_processes.py BUNDLE VOCAB OUT

Each way of training starts from the same weights and sees the same four lines a step, two a
process; the first process writes the losses and the weights it ends with to OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

STEPS = 3
WAYS = ("ddp, dense", "ddp, sparse", "fsdp2, dense", "fsdp2, sparse")


def train(
    way: str, bundle: str, vocab: int, rank: int | None, folder: str | None = None
) -> dict[str, Any]:
    """Three steps in one of WAYS; `rank` None is one process on the whole batch.

    With a `folder` the model is saved there as a Trainer does it.
    """
    from tiny_models import llama, text, wake

    from engram_cli.runtime import (
        RowwiseAdagrad,
        attach,
        average_row_gradients,
        parameter_groups,
        row_parameters,
    )

    model: Any = llama(vocab).train()
    wake(attach(model, bundle, sparse_gradients="sparse" in way))
    is_sharded = rank is not None and "fsdp2" in way
    if is_sharded:
        rows = set(row_parameters(model))
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model, ignored_params=rows)
    wrapped = DistributedDataParallel(model) if rank is not None and "ddp" in way else model
    rest, rows_group = parameter_groups(model, lr=0.05)
    optimisers = [torch.optim.SGD([rest]), RowwiseAdagrad([rows_group])]
    losses = []
    for step in range(STEPS):
        ids = text(200, 4, 12, seed=step)
        mine = ids if rank is None else ids[2 * rank : 2 * rank + 2]
        loss = wrapped(mine, labels=mine).loss
        loss.backward()
        if is_sharded:
            average_row_gradients(model)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        mean = loss.detach().clone()
        if rank is not None:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        losses.append(float(mean))
    if folder is not None:
        gathered = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=gathered)
        model.save_pretrained(folder, state_dict=state, is_main_process=rank == 0)
    weights = {name: whole(value) for name, value in model.state_dict().items()}
    return {"losses": losses, "weights": weights}


def whole(value: Any) -> torch.Tensor:
    """A tensor, gathered where it is sharded."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def process(rank: int, bundle: str, vocab: int, out: str) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=2)
    found = {way: train(way, bundle, vocab, rank, f"{out}.{way}") for way in WAYS}
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    torch.multiprocessing.spawn(process, (sys.argv[1], int(sys.argv[2]), sys.argv[3]), nprocs=2)
else:
    sys.path.insert(0, str(Path(__file__).parents[1]))
