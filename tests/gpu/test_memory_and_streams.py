"""Kernels give the same bits wherever memory begins and on whatever stream or graph they run."""

from __future__ import annotations

import pytest
import torch
from lookup_cases import FORMS, a_table, same_bits, the_hash
from torch import Tensor

from engram_cli.runtime import lookup_reference, ops
from engram_cli.runtime.lookup_reference import NO_LIMITS, LookBack
from engram_cli.runtime.reference import HashTensors
from engram_cli.runtime.tables import Table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
OFFSETS = pytest.mark.parametrize("offset", [0, 1, 2, 4])
COUNTS = pytest.mark.parametrize("count", [1, 7, 16, 33, 700])


def _offset(tensor: Tensor, by: int) -> Tensor:
    """The same values, `by` items after the start of an allocation."""
    whole = torch.empty(tensor.numel() + by, dtype=tensor.dtype, device=tensor.device)
    return whole[by:].view(tensor.shape).copy_(tensor)


def _equals_the_twin(
    found: tuple[Tensor, Tensor],
    hashed: HashTensors,
    ids: Tensor,
    tables: list[Table],
    back: LookBack = NO_LIMITS,
) -> bool:
    rows, vectors = found
    return same_bits(rows, lookup_reference.find_rows(hashed, ids, back)) and same_bits(
        vectors, lookup_reference.look_up(hashed, ids, tables, back)
    )


@OFFSETS
@COUNTS
def test_look_ups_of_memory_at_any_address(offset: int, count: int) -> None:
    hashed = the_hash("engram-v1", CUDA)
    ids = _offset(torch.randint(0, 20, (2, count), device=CUDA, dtype=torch.int32), offset)
    tables = [
        Table(values=_offset(a_table("bfloat16", height, 16, CUDA).values, offset))
        for height in hashed.heights
    ]
    for _ in range(3):
        found = ops.find_rows(hashed, ids), ops.look_up(hashed, ids, tables)
        assert _equals_the_twin(found, hashed, ids, tables)


def _steps(offset: int, count: int) -> tuple[Tensor, ...]:
    made = torch.Generator(CUDA).manual_seed(count)
    values = _offset(torch.randn(count, 24, device=CUDA, generator=made), offset)
    rows = _offset(torch.randint(0, 50, (count,), device=CUDA, generator=made), offset)
    start = torch.randn(50, 24, device=CUDA, generator=made)
    first, second, sums = start.clone(), _offset(start, offset), torch.zeros(50, device=CUDA)
    mean, square = torch.zeros(2, 50, 24, device=CUDA)
    ops.adagrad_step(first, sums, values, rows, 0.1, 1e-8)
    state = (mean, square, torch.ones((), device=CUDA))
    ops.adam_step(second, state, values, rows, 0.1, (0.9, 0.99), 1e-8)
    return first, sums, second, mean, square


@OFFSETS
@COUNTS
def test_steps_in_memory_at_any_address(offset: int, count: int) -> None:
    """`check_rows` compares the steps in aligned memory with their twins."""
    for mine, aligned in zip(_steps(offset, count), _steps(0, count), strict=True):
        assert same_bits(mine, aligned)


def test_another_stream() -> None:
    hashed = the_hash("engram-v1", CUDA)
    ids, later = torch.randint(0, 20, (2, 2, 300), device=CUDA)
    tables = [a_table("bfloat16", height, 16, CUDA) for height in hashed.heights]
    early = ops.find_rows(hashed, ids)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        ids.copy_(later)  # only what is queued after it sees it
        found = ops.find_rows(hashed, ids), ops.look_up(hashed, ids, tables)
    stream.synchronize()
    assert not same_bits(found[0], early)
    assert _equals_the_twin(found, hashed, ids, tables)


def test_inside_a_graph() -> None:
    hashed = the_hash("deepseek-v4.1", CUDA)
    ids, back = FORMS["dead"](CUDA)
    tables = [a_table("fp8 + e8m0", height, 64, CUDA) for height in hashed.heights]

    def work() -> tuple[Tensor, Tensor]:
        return ops.find_rows(hashed, ids, back), ops.look_up(hashed, ids, tables, back)

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()
    for turn in range(3):
        ids.copy_(torch.randint_like(ids, 0, 20) if turn else ids.clone())
        graph.replay()
        assert _equals_the_twin(found, hashed, ids, tables, back)
