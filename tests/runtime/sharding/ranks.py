"""Looks rows up in several processes (gloo): run by test_exchange.py as a program.

    python ranks.py WORLD BUNDLE VOCAB OUT

Each rank writes what it found to OUT.RANK; the test compares it with one process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

DTYPES = ("bfloat16", "fp8_e8m0", "fp8", "int8", "int4")
TOKENS = (4, 0, 7)  # of each rank: they call together, with as many rows as each needs


def exchanged(rank: int, world: int) -> dict[str, Any]:
    """Rows of every dtype, by counts and by bounded messages."""
    from shard_cases import distribute, whole

    from engram_cli.runtime.sharding.exchange import exchange_rows
    from engram_cli.runtime.sharding.group import find_group
    from engram_cli.runtime.sharding.owners import index_at_owner, owner_of

    cpu, found = torch.device("cpu"), {}
    group = find_group(None, [cpu])
    for dtype in DTYPES:
        spec, _, tables = whole(dtype, cpu)
        made = distribute(spec, tables, group, [cpu], scales_here=dtype == "int8")
        assert not made.memory.every
        rows = some_rows(rank, made.blocks.heights[1])
        found[dtype] = made.read(1, rows)
        found[f"{dtype}, counted"] = made.counted()
        firsts = torch.tensor([made.blocks.first(k, 1) for k in range(world)])
        flat = rows.reshape(-1)
        owners = owner_of(flat, world)
        index = index_at_owner(flat, world) + firsts[owners]
        parts = made.blocks.parts(made.memory.own[0])
        for at_most in (None, 24):
            for part, got in enumerate(
                exchange_rows(owners, index, parts, group.processes, at_most)
            ):
                found[f"{dtype}, {at_most}, part {part}"] = got
    return found


def some_rows(rank: int, height: int) -> torch.Tensor:
    """Rows that a rank asks for, int64 [1, tokens, 3]."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(0, height, (1, TOKENS[rank], 3), generator=generator)


def attached(rank: int, bundle: str, vocab: int) -> dict[str, Any]:
    """Logits of a model with distributed rows."""
    from tiny_models import llama, text, wake

    from engram_cli.runtime import attach, detach

    model = llama(vocab)
    memory = attach(model, bundle, placement="shard")
    wake(memory)
    assert memory.shards is not None
    with torch.no_grad():
        logits = model(input_ids=text(200, 2, 9, seed=rank)).logits
    read, here = memory.shards.counted()
    found = {"logits": logits, "notes": memory.notes, "peer": memory.counters.peer}
    assert found["peer"] == read - here
    dist.barrier()
    detach(model)
    return found


def refused(rank: int, bundle: str, vocab: int) -> str:
    """The error of a rank where only the first has too little memory."""
    from tiny_models import llama

    from engram_cli.errors import EngramError
    from engram_cli.runtime import attach

    if rank == 0:
        os.environ["ENGRAM_HOST_MEMORY"] = "10"
    try:
        attach(llama(vocab), bundle, placement="shard")
    except EngramError as error:
        return str(error)
    finally:
        os.environ.pop("ENGRAM_HOST_MEMORY", None)
    return "nothing"


def divided(rank: int) -> list[str]:
    """What is said of numbers that do not divide the processes of a host, or of one alone."""
    from engram_cli.errors import InputError
    from engram_cli.runtime.sharding.group import find_group

    said = []
    for asked, host in ((4, None), (None, str(rank))):
        before = os.environ.get("ENGRAM_SHARD_HOST")
        if host is not None:
            os.environ["ENGRAM_SHARD_HOST"] = host
        try:
            find_group(asked, [torch.device("cpu")])
        except InputError as error:
            said.append(error.message)
        if host is not None:
            os.environ.pop("ENGRAM_SHARD_HOST")
        if before is not None:
            os.environ["ENGRAM_SHARD_HOST"] = before
    return said


def process(rank: int, world: int, bundle: str, vocab: int, out: str) -> None:
    """What each of the processes does: three are of one host, four of two hosts."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=world)
    local, size = rank, world
    if world == 4:
        os.environ["ENGRAM_SHARD_HOST"] = f"host {rank // 2}"
        local, size = rank % 2, 2
    found: dict[str, Any] = exchanged(local, size)
    found["shard"] = attached(rank, bundle, vocab)
    if world == 4:
        found["refused"], found["divided"] = refused(rank, bundle, vocab), divided(rank)
    torch.save(found, f"{out}.{rank}")
    dist.destroy_process_group()


sys.path.insert(0, str(Path(__file__).parents[2]))
if __name__ == "__main__":
    count = int(sys.argv[1])
    given = (count, sys.argv[2], int(sys.argv[3]), sys.argv[4])
    torch.multiprocessing.spawn(process, given, nprocs=count)
