"""Trains with rows distributed over processes: a program, run by test_trained.py and on GPUs.

    python trained_processes.py BUNDLE VOCAB OUT cpu|cuda|cuda:0 WAYS WORLD ...

For each world, the first process writes what it found to OUT.WORLD. WAYS, as in the list WAYS and
divided by semicolons, say how to train; three processes resume what two saved. Processes on the
CPU, or all on one GPU (cuda:0), use gloo; those with a GPU each use NCCL. They are forked: torch is
imported once.
"""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

LINES, STEPS = 6, 2  # LINES can be divided among 1, 2 and 3 processes
WAYS = ("ddp, adam, checkpointed", "ddp, adagrad, clipped", "fsdp2, adam, clipped")
HEIGHTS, DIM = (11, 7), 4
DTYPES = (torch.float32, torch.bfloat16)
CASES = ("mixed", "one row", "one owner", "one rank asks", "nobody asks")


def batch(vocab: int, step: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask: some lines are padded, one token fills another."""
    from tiny_models import text

    ids = text(vocab, LINES, 12, seed=step)
    ids[1] = 7
    mask = torch.ones_like(ids)
    mask[2, 9:] = mask[5, :4] = 0
    return ids, mask


class Run:
    """A tiny model in training, on this process's part of each batch."""

    def __init__(
        self, way: str, bundle: str | Path, vocab: int, rank: int | None, device: str = "cpu"
    ) -> None:
        from tiny_models import llama, wake

        from engram_cli.runtime import (
            RowwiseAdagrad,
            RowwiseAdam,
            attach,
            parameter_groups,
            row_parameters,
        )

        self.way, self.vocab, self.rank, self.device = way, vocab, rank, device
        self.model: Any = llama(vocab).train().to(device)
        placement = "hbm" if rank is None else "shard"
        wake(attach(self.model, bundle, sparse_gradients=True, placement=placement))
        if "checkpointed" in way:
            name = "activation_checkpointing_enable"  # its name before transformers 5.2x:
            enable = getattr(self.model, name, None) or self.model.gradient_checkpointing_enable
            enable()
        self.wrapped: Any = self.model
        if rank is not None and "fsdp2" in way:
            for layer in self.model.model.layers:
                fully_shard(layer)
            fully_shard(self.model, ignored_params=set(row_parameters(self.model)))
        elif rank is not None:
            self.wrapped = DistributedDataParallel(self.model)
        rest, rows = parameter_groups(self.model, lr=0.01)
        kind = RowwiseAdam if "adam" in way else RowwiseAdagrad
        self.of_rows = kind([rows])
        self.optimisers = [torch.optim.SGD([rest]), self.of_rows]

    def steps(self, first: int, count: int) -> list[float]:
        """Take steps and return the mean loss of all processes at each."""
        from engram_cli.runtime import clip_grad_norm

        losses = []
        for step in range(first, first + count):
            ids, mask = batch(self.vocab, step)
            if self.rank is not None:
                part = LINES // dist.get_world_size()
                ids, mask = (x[self.rank * part : (self.rank + 1) * part] for x in (ids, mask))
            ids, mask = ids.to(self.device), mask.to(self.device)
            loss = self.wrapped(ids, attention_mask=mask, labels=ids).loss
            loss.backward()
            if "clipped" in self.way:
                clip_grad_norm(self.model, 0.5)
            for optimiser in self.optimisers:
                optimiser.step()
                optimiser.zero_grad()
            mean = loss.detach().clone()
            if self.rank is not None:
                dist.all_reduce(mean)
                mean /= dist.get_world_size()
            losses.append(float(mean))
        return losses

    def save(self, folder: str) -> None:
        """Save the memory, the state of its rows, and the weights of the model."""
        from engram_cli.runtime import save_engram, save_row_states

        Path(folder).mkdir(exist_ok=True)
        save_engram(self.model, f"{folder}/engram")
        save_row_states(self.of_rows, self.model, f"{folder}/states")
        state = {name: whole(value) for name, value in self.model.state_dict().items()}
        if not self.rank:
            torch.save(state, f"{folder}/model.pt")
        if self.rank is not None:
            dist.barrier()

    def resume(self, folder: str) -> Run:
        """Take what another number of processes saved."""
        from engram_cli.runtime import load, load_row_states

        load(self.model, f"{folder}/engram")
        load_row_states(self.of_rows, self.model, f"{folder}/states")
        state = torch.load(f"{folder}/model.pt", map_location=self.device)
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if "embedding.weight" in name and "engram" in name:
                    continue
                if hasattr(value, "full_tensor"):
                    from torch.distributed.tensor import distribute_tensor

                    value.copy_(distribute_tensor(state[name], value.device_mesh, value.placements))
                else:
                    value.copy_(state[name])
        return self


def whole(value: Any) -> Tensor:
    """A tensor, gathered where it is sharded."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def rows_of(case: str, rank: int, world: int, seed: int = 0) -> Tensor:
    """The rows int64[L, n] that a process looks up in a case."""
    generator = torch.Generator().manual_seed(100 * seed + rank)
    rows = torch.stack(
        [torch.randint(0, height, (20 + 3 * rank,), generator=generator) for height in HEIGHTS]
    )
    if case == "one row":
        rows[:] = 5
    elif case == "one owner":  # other owners are asked for nothing
        rows -= rows % world
    elif case == "nobody asks" or (case == "one rank asks" and rank != 1):
        rows = rows[:, :0]
    return rows


def table(layer: int, dtype: torch.dtype) -> Tensor:
    """The whole table of a layer."""
    generator = torch.Generator().manual_seed(layer)
    return torch.randn(HEIGHTS[layer], DIM, generator=generator).to(dtype)


def exchange(case: str, dtype: torch.dtype, rank: int, world: int, device: str) -> dict[str, Any]:
    """Look rows up, and give them a gradient: what this process gets, and how often it waits."""
    from engram_cli.runtime.sharding.trained.rows import ShardedRows, look_up

    tables = [
        ShardedRows(table(layer, dtype)[rank::world].to(device), height)
        for layer, height in enumerate(HEIGHTS)
    ]
    rows = rows_of(case, rank, world).to(device)
    found, waits = [], []
    for _ in range(2):
        for own in tables:
            own.weight.grad = None
        with host_waits() as forward:
            vectors = look_up(tables, rows[..., None])
        generator = torch.Generator().manual_seed(50 + rank)
        given = torch.randn(vectors.shape, generator=generator).to(device, dtype)
        with host_waits() as backward:
            vectors.backward(given)
        waits = [len(forward), len(backward)]
        found.append([own.weight.grad for own in tables])
    gradients = [gradient.to_dense().cpu() for gradient in found[0]]
    norm = [torch.linalg.vector_norm(g, ord) for g in found[0] for ord in (2.0, float("inf"))]
    return {
        "vectors": vectors.detach().cpu(),
        "given": given.cpu(),
        "gradients": gradients,
        "norms": torch.stack(norm).cpu(),
        "waits": waits,
        "again": all(
            torch.equal(a._values(), b._values()) and torch.equal(a._indices(), b._indices())
            for a, b in zip(*found, strict=True)
        ),
    }


@contextmanager
def host_waits() -> Iterator[list[Any]]:
    """Notes how often the host waits for a GPU."""
    if not torch.cuda.is_initialized():
        yield []
        return
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield noted
        finally:
            torch.cuda.set_sync_debug_mode("default")
            noted[:] = [each for each in noted if "synchronizing" in str(each.message)]


def gathered(value: Any) -> list[Any]:
    """What all processes give."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def message(call: Callable[[], Any]) -> str:
    """What a call that fails says."""
    from engram_cli.errors import EngramError

    try:
        call()
    except EngramError as error:
        return f"{type(error).__name__}: {error.message}"
    return "nothing"


def refusals(bundle: str, vocab: int, device: str, out: str) -> dict[str, str]:
    """What is refused, and how."""
    from tiny_models import llama, text

    from engram_cli.runtime import RowwiseAdam, attach, load, row_parameters, save_engram
    from engram_cli.runtime.carried import leave_out_of_broadcasts

    model = llama(vocab).to(device)
    memory = attach(model, bundle, rows_trainable=True, placement="shard")
    outer = nn.ModuleDict({"model": model})
    outer.forward = lambda ids: model(ids).logits  # type: ignore[method-assign]
    ids = text(vocab, 1, 6).to(device)
    found = {
        "notes": "; ".join(memory.notes),
        "hbm": message(lambda: load(model, bundle, placement="hbm")),
        "ddp": message(lambda: DistributedDataParallel(outer)(ids)),
    }
    leave_out_of_broadcasts(outer)
    found["left out"] = message(lambda: DistributedDataParallel(outer)(ids))
    optimiser = RowwiseAdam(row_parameters(model))
    model(ids, labels=ids).loss.backward()
    optimiser.step()
    optimiser.load_state_dict(optimiser.state_dict())
    found["state"] = message(optimiser.step)
    torch.save(model.state_dict(), f"{out}.{dist.get_rank()}.pt")
    model.load_state_dict(torch.load(f"{out}.{dist.get_rank()}.pt"), strict=True)
    found["keys"] = ", ".join(key for key in model.state_dict() if "embedding.weight" in key)
    foreign = Path(f"{out}.foreign.{dist.get_world_size()}")
    foreign.mkdir(exist_ok=True)
    (foreign / "note.txt").write_text("kept")
    dist.barrier()
    found["exists"] = message(lambda: save_engram(model, foreign))
    found["foreign"] = message(lambda: save_engram(model, foreign, force=True))
    return found


def run_processes(
    bundle: Path,
    vocab: int,
    out: Path,
    device: str,
    worlds: tuple[int, ...],
    ways: Sequence[str] = WAYS,
) -> dict[str, Any]:
    """Run this program, and return what its processes found, by world, and where they saved."""
    arguments = [str(bundle), str(vocab), str(out), device, ";".join(ways), *map(str, worlds)]
    command = [sys.executable, __file__, *arguments]
    environment = dict(os.environ)
    if device == "cuda:0":  # processes that share a GPU see no other one
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"out": out, "worlds": {world: torch.load(f"{out}.{world}") for world in worlds}}


def check_exchange(ranks: list[dict[str, Any]], case: str, dtype: torch.dtype) -> None:
    """Compare what all ranks looked up, and their gradients, with the whole tables."""
    world = len(ranks)
    near = {"atol": 1e-6, "rtol": 1e-6} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.02}
    for layer, height in enumerate(HEIGHTS):
        whole = table(layer, dtype)
        expected = torch.zeros(height, DIM, dtype=torch.float64)
        for rank, own in enumerate(ranks):
            rows = rows_of(case, rank, world)[layer]
            assert torch.equal(own["vectors"][layer], whole[rows])
            expected.index_add_(0, rows, own["given"][layer].double())
        expected /= world
        for rank, own in enumerate(ranks):
            mine = own["gradients"][layer].double()
            torch.testing.assert_close(mine, expected[rank::world], **near)
        norms = [own["norms"].view(len(HEIGHTS), 2)[layer] for own in ranks]
        assert all(torch.equal(norm, norms[0]) for norm in norms)
        total = torch.stack([expected.norm(), expected.abs().max()])
        torch.testing.assert_close(norms[0].double(), total, atol=1e-2, rtol=1e-2)
    assert all(own["again"] for own in ranks), "not the same bits every time"


def process(
    rank: int, world: int, bundle: str, vocab: int, out: str, device: str, ways: str
) -> None:
    """What each process does."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(100, exit=True)  # of a process that waits for ever
    torch.set_num_threads(1)
    own, backend = None, "gloo"
    if device == "cuda":
        device, backend = f"cuda:{rank}", "nccl"
        own = torch.device(device)
    if device != "cpu":
        torch.cuda.set_device(device)
    method = f"file://{out}.meet.{world}"
    dist.init_process_group(backend, init_method=method, rank=rank, world_size=world, device_id=own)
    found: dict[str, Any] = {
        "exchange": {
            (case, dtype): gathered(exchange(case, dtype, rank, world, device))
            for case in CASES
            for dtype in DTYPES
        },
        "refusals": gathered(refusals(bundle, vocab, device, out)),
        "losses": {},
    }
    for way in filter(None, ways.split(";")):
        run = Run(way, bundle, vocab, rank, device)
        first = 0
        if world == 3:
            run.resume(f"{out}.2.{way}")
            run.save(f"{out}.again.{way}")
            first = STEPS
        found["losses"][way] = run.steps(first, STEPS)
        run.save(f"{out}.{world}.{way}")
    if rank == 0:
        torch.save(found, f"{out}.{world}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    torch.set_num_threads(1)
    import tiny_models  # noqa: F401  # before forking

    import engram_cli.runtime.saving  # noqa: F401

    for size in map(int, sys.argv[6:]):
        torch.multiprocessing.start_processes(
            process,
            (size, sys.argv[1], int(sys.argv[2]), *sys.argv[3:6]),
            nprocs=size,
            start_method="fork",
        )
