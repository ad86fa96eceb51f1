"""Direct launches on a GPU: the bits of Triton's own, wherever memory lies and work is queued."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lookup_cases import FORMS, a_table, same_bits, the_hash
from torch import Tensor

from engram_cli.runtime import ops
from engram_cli.runtime.tables import Table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
Work = Callable[[], tuple[Tensor, ...]]


@pytest.fixture
def tritons(monkeypatch: pytest.MonkeyPatch) -> Callable[[Work], tuple[Tensor, ...]]:
    """What a work gives where Triton makes every launch."""
    from engram_cli.runtime.kernels import launching

    def run(work: Work) -> tuple[Tensor, ...]:
        with monkeypatch.context() as own:
            own.setattr(launching, "_HAS_KNOWN_VERSION", False)
            return work()

    return run


def _apart(tensor: Tensor, by: int) -> Tensor:
    """The same values, `by` items beyond where an allocation begins."""
    whole = torch.empty(tensor.numel() + by, dtype=tensor.dtype, device=tensor.device)
    return whole[by:].view(tensor.shape).copy_(tensor)


def _look_ups(by: int, tokens: int) -> Work:
    hashed = the_hash("engram-v1", CUDA)
    ids = _apart(torch.randint(0, 20, (2, tokens), device=CUDA, dtype=torch.int32), by)
    tables = [
        Table(values=_apart(a_table("bfloat16", height, 16, CUDA).values, by))
        for height in hashed.heights
    ]
    return lambda: (ops.find_rows(hashed, ids), ops.look_up(hashed, ids, tables))


def _steps(by: int, tokens: int) -> Work:
    made = torch.Generator(CUDA).manual_seed(tokens)
    values = _apart(torch.randn(tokens, 24, device=CUDA, generator=made), by)
    rows = _apart(torch.randint(0, 50, (tokens,), device=CUDA, generator=made), by)
    start = _apart(torch.randn(50, 24, device=CUDA, generator=made), by)

    def run() -> tuple[Tensor, ...]:
        first, second, sums = start.clone(), _apart(start, by), torch.zeros(50, device=CUDA)
        mean, square = torch.zeros(2, 50, 24, device=CUDA)
        ops.adagrad_step(first, sums, values, rows, 0.1, 1e-8)
        state = (mean, square, torch.ones((), device=CUDA))
        ops.adam_step(second, state, values, rows, 0.1, (0.9, 0.99), 1e-8)
        return first, sums, second, mean, square

    return run


@pytest.mark.parametrize("make", [_look_ups, _steps])
@pytest.mark.parametrize("by", [0, 1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 7, 16, 33, 700])
def test_the_same_bits(
    make: Callable[[int, int], Work],
    by: int,
    tokens: int,
    tritons: Callable[[Work], tuple[Tensor, ...]],
) -> None:
    work = make(by, tokens)
    expected = tritons(work)
    for _ in range(3):
        for own, of in zip(work(), expected, strict=True):
            assert same_bits(own, of)


def test_another_stream(tritons: Callable[[Work], tuple[Tensor, ...]]) -> None:
    hashed = the_hash("engram-v1", CUDA)
    ids, later = torch.randint(0, 20, (2, 2, 300), device=CUDA)
    tables = [a_table("bfloat16", height, 16, CUDA) for height in hashed.heights]

    def work() -> tuple[Tensor, ...]:
        return ops.find_rows(hashed, ids), ops.look_up(hashed, ids, tables)

    early = work()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        ids.copy_(later)  # only what is queued behind it sees it
        found = work()
    stream.synchronize()
    assert not same_bits(found[0], early[0])
    assert all(same_bits(own, of) for own, of in zip(found, tritons(work), strict=True))


def test_inside_a_graph(tritons: Callable[[Work], tuple[Tensor, ...]]) -> None:
    hashed = the_hash("deepseek-v4.1", CUDA)
    ids, back = FORMS["dead"](CUDA)
    tables = [a_table("fp8 + e8m0", height, 64, CUDA) for height in hashed.heights]

    def work() -> tuple[Tensor, ...]:
        return ops.find_rows(hashed, ids, back), ops.look_up(hashed, ids, tables, back)

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()
    for turn in range(3):
        ids.copy_(torch.randint_like(ids, 0, 20) if turn else ids.clone())
        graph.replay()
        for own, of in zip(found, tritons(work), strict=True):
            assert same_bits(own, of)
