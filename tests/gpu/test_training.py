"""Gradients of rows on a GPU: the checks of the interpreter, and what only a GPU can show."""

from __future__ import annotations

import threading

import pytest
import torch
from gpu.interpreted import checks
from lookup_cases import bare_vocab, the_hash
from runtime.kernels.row_cases import RowCase
from torch import Tensor, nn

from engram_cli.hashing.schemes import hash_layout
from engram_cli.runtime import lookup_reference, ops, row_gradients, step_graphs, torch_ops_rows
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.reference import HashTensors
from engram_cli.runtime.row_optimisers import RowwiseAdagrad, RowwiseAdam
from engram_cli.runtime.sparse_gradients import coalesced
from engram_cli.runtime.tables import Table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

globals().update(checks("check_rows"))

CUDA = torch.device("cuda")
OPTIMISERS = (RowwiseAdagrad, RowwiseAdam)
LARGE = RowCase(count=100_000, dim=64, height=30_000, hot=20_000, dtype=torch.bfloat16)


def a_hash() -> HashTensors:
    layout = hash_layout(
        "engram-v1", bare_vocab(1000, 900), rows_per_head=5000, layers=(1, 2), pad_id=5
    )
    return hash_tensors(layout, (1, 2), device=CUDA)


def training_step(
    hashed: HashTensors, weights: list[nn.Parameter], ids: Tensor, how: str = "sparse"
) -> None:
    tables = [Table(values=weight, gradients=how) for weight in weights]
    out = ops.look_up(hashed, ids, tables)
    (out.float() * torch.linspace(-1, 1, out.shape[-1], device=CUDA)).square().sum().backward()


def weights_of(hashed: HashTensors, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(4)
    return [
        nn.Parameter(torch.randn(height, 16, generator=generator).to(CUDA, dtype))
        for height in hashed.heights
    ]


def test_long_segments_and_many_rows() -> None:
    values, rows = LARGE.make(CUDA)
    found, sums = ops.sum_rows(values, rows, LARGE.height)
    expected, wanted = row_gradients.sum_rows(values.cpu(), rows.cpu(), LARGE.height)
    assert torch.equal(found.cpu(), expected)
    assert torch.equal(sums.cpu(), wanted)
    exact = row_gradients.sum_rows(values.cpu().double(), rows.cpu(), LARGE.height)[1]
    torch.testing.assert_close(sums.cpu().double(), exact, rtol=1e-5, atol=1e-4)


def test_the_same_bits_every_time() -> None:
    hashed = a_hash()
    ids = torch.randint(0, 50, (8, 1000), device=CUDA)
    for how in ("dense", "sparse"):
        found = []
        for _ in range(4):
            weights = weights_of(hashed, torch.bfloat16)
            training_step(hashed, weights, ids, how)
            RowwiseAdagrad(weights, lr=0.1).step()
            found.append([*weights, *(weight.grad.to_dense() for weight in weights)])
        for other in found[1:]:
            assert all(map(torch.equal, found[0], other))


# That the mode is a prototype.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_step_waits_for_nothing(optimiser: type[torch.optim.Optimizer]) -> None:
    hashed = a_hash()
    weights = weights_of(hashed)
    steps = optimiser(weights, lr=0.1)
    ids = torch.randint(0, 1000, (4, 100), device=CUDA)
    training_step(hashed, weights, ids)
    steps.step()
    steps.zero_grad()
    try:
        torch.cuda.set_sync_debug_mode("error")
        training_step(hashed, weights, ids)
        steps.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_graph_trains_as_a_loop_does(optimiser: type[torch.optim.Optimizer]) -> None:
    hashed = a_hash()
    batches = [torch.randint(0, 1000, (4, 200), device=CUDA) for _ in range(4)]
    looped, graphed = weights_of(hashed), weights_of(hashed)
    mine, own = optimiser(looped, lr=0.1), optimiser(graphed, lr=0.1)
    ids = batches[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the first step makes the state
        training_step(hashed, graphed, ids)
        own.step()
        own.zero_grad()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training_step(hashed, graphed, ids)
        own.step()
        own.zero_grad()
    for batch in batches[1:]:
        ids.copy_(batch)
        graph.replay()
    for batch in batches:
        training_step(hashed, looped, batch)
        mine.step()
        mine.zero_grad()
    assert all(map(torch.equal, looped, graphed))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_loop_that_became_graphs_trains_as_before(
    optimiser: type[torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate that changes, another length in between, and rows that are replaced."""
    hashed = a_hash()
    found, replayed = [], []
    for kept in (step_graphs._KEPT, 0):
        monkeypatch.setattr(step_graphs, "_KEPT", kept)
        weights = weights_of(hashed)
        steps = optimiser(weights, lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(steps, 0.9)
        for turn in range(12):
            length = 150 if turn == 5 else 100
            generator = torch.Generator().manual_seed(turn)
            ids = torch.randint(0, 1000, (4, length), generator=generator).to(CUDA)
            training_step(hashed, weights, ids)
            steps.step()
            schedule.step()
            steps.zero_grad()
            if turn == 8:
                with torch.no_grad():
                    weights[0].data = weights[0].detach().clone()
        found.append([*weights, *(steps.state[w][n] for w in weights for n in steps.state[w])])
        replayed.append(steps._graphs.replayed)  # type: ignore[attr-defined]
    assert replayed[0] > 0
    assert replayed[1] == 0
    assert all(map(torch.equal, *found))


def test_a_step_of_another_thread_is_captured_while_this_one_copies() -> None:
    """As data loaders do: pinned memory, copies and events in a thread of their own."""
    hashed, ended = a_hash(), threading.Event()

    def copies() -> None:
        while not ended.is_set():
            torch.ones(1000).pin_memory().to(CUDA, non_blocking=True)
            torch.cuda.Event().record()

    thread = threading.Thread(target=copies)
    thread.start()
    try:
        weights = weights_of(hashed)
        steps = RowwiseAdam(weights, lr=0.1)
        ids = torch.randint(0, 1000, (4, 100), device=CUDA)
        for _ in range(20):
            training_step(hashed, weights, ids)
            steps.step()
            steps.zero_grad()
        torch.cuda.synchronize()
    finally:
        ended.set()
        thread.join()
    assert steps._graphs is not None
    assert steps._graphs.captured > 0


# Said once a process where torch makes a sparse tensor.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_adam_is_torchs_sparse_adam() -> None:
    hashed = a_hash()
    mine, theirs = weights_of(hashed), weights_of(hashed)
    own, torchs = RowwiseAdam(mine, lr=0.01), torch.optim.SparseAdam(theirs, lr=0.01)
    for seed in range(4):
        ids = torch.randint(0, 1000, (4, 100), generator=torch.Generator().manual_seed(seed))
        for weights, steps in ((mine, own), (theirs, torchs)):
            training_step(hashed, weights, ids.to(CUDA))
            steps.step()
            steps.zero_grad()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_another_stream_and_a_gradient_that_lies_apart() -> None:
    hashed = the_hash("engram-v1", CUDA)
    ids = torch.randint(0, 20, (4, 500), device=CUDA)
    found = []
    for way in (ops.look_up, lookup_reference.look_up):
        weights = [nn.Parameter(torch.ones(h, 16, device=CUDA)) for h in hashed.heights]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            out = way(hashed, ids, [Table(values=weight) for weight in weights])
            generator = torch.Generator(device=CUDA).manual_seed(0)
            apart = torch.randn(out.shape[::-1], device=CUDA, generator=generator)
            out.backward(apart.permute(3, 2, 1, 0))
        side.synchronize()
        found.append([weight.grad for weight in weights])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_coalesced_gradients_have_each_row_once() -> None:
    values, rows = LARGE.make(CUDA)
    shape = (LARGE.height, LARGE.dim)
    gradient = torch_ops_rows.sparse_tensor(rows, values, torch.Size(shape))
    found = coalesced(gradient)
    assert found.is_coalesced()
    assert found.indices().shape[1] == len(rows.unique())
    dense = torch_ops_rows.dense_row_gradient(values, rows, LARGE.height, values.dtype, False)
    assert torch.equal(found.to_dense(), dense)
