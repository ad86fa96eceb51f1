"""The look-up on a GPU: the interpreter's checks, all of them, and what only a GPU can show."""

from __future__ import annotations

import pytest
import torch
from gpu.interpreted import checks
from lookup_cases import FORMS, a_table, bare_vocab, same_bits, the_hash

from engram_cli.hashing.schemes import hash_layout
from engram_cli.runtime import lookup_reference, ops, torch_ops
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.lookup_reference import LookBack
from engram_cli.runtime.tables import Table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

globals().update(checks("check_lookup"))

CUDA = torch.device("cuda")


def test_a_table_beyond_two_to_the_32_elements() -> None:
    layout = hash_layout(
        "engram-v1", bare_vocab(1000, 900), rows_per_head=4_500_000, layers=(1,), pad_id=5
    )
    hashed = hash_tensors(layout, (1,), device=CUDA)
    rows = hashed.heights[0]
    assert rows * 64 > 2**32
    values = torch.empty(rows * 8, dtype=torch.int64, device=CUDA).random_()
    table = Table(values=values.view(torch.int8).view(rows, 64), scales=torch.rand(rows).to(CUDA))
    ids = torch.randint(0, 1000, (1, 5000), device=CUDA)
    assert int(ops.find_rows(hashed, ids).max()) * 64 > 2**32
    found = ops.look_up(hashed, ids, [table])
    assert same_bits(found, lookup_reference.look_up(hashed, ids, [table]))


def test_integers_decode_e4m3_as_the_hardware_does() -> None:
    from engram_cli.runtime.kernels import lookup_launcher

    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no conversion in hardware")
    hashed = the_hash("engram-v1", CUDA)
    own = lookup_launcher.Hash(*torch_ops.hash_arguments(hashed))
    ids = torch.arange(40, device=CUDA)[None]
    tables = [a_table("fp8 + e8m0", height, 256, CUDA, wide=True) for height in hashed.heights]
    values, scales, kind = torch_ops.table_arguments(tables)
    both = [
        lookup_launcher.look_up(
            own._replace(orders=tuple(own.orders)),
            ids,
            values,
            scales,
            LookBack(),
            torch.bfloat16,
            kind=kind,
            bits=bits,
        )
        for bits in (False, True)
    ]
    assert same_bits(*both)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["float32", "fp8 + e8m0"])
def test_look_ups_that_come_again(kind: str, form: str) -> None:
    hashed = the_hash("deepseek-v4.1", CUDA)
    ids, back = FORMS[form](CUDA)
    for turn in range(3):
        tables = [a_table(kind, height, 64, CUDA) for height in hashed.heights]
        other = (ids + turn) % 20
        found = ops.look_up(hashed, other, tables, back)
        assert same_bits(found, lookup_reference.look_up(hashed, other, tables, back))
        expected = lookup_reference.find_rows(hashed, other, back)
        assert torch.equal(ops.find_rows(hashed, other, back), expected)


@pytest.mark.parametrize("gradients", ["dense", "sparse"])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_look_ups_that_come_again(layers: int, gradients: str) -> None:
    layout = hash_layout(
        "engram-v1", bare_vocab(1000, 900), rows_per_head=500, layers=(1, 2)[:layers], pad_id=5
    )
    hashed = hash_tensors(layout, (1, 2)[:layers], device=CUDA)
    for turn in range(3):
        ids, found = torch.arange(turn, turn + 40, device=CUDA)[None], []
        for call in (ops.look_up, lookup_reference.look_up):
            tables = [
                Table(values=torch.ones(h, 16, device=CUDA).requires_grad_(), gradients=gradients)
                for h in hashed.heights
            ]
            out = call(hashed, ids, tables)
            out.backward(torch.linspace(-1, 1, out.numel(), device=CUDA).view(out.shape))
            found.append([table.values.grad.to_dense() for table in tables])  # type: ignore[union-attr]
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_graph_replays_on_new_ids_and_histories() -> None:
    hashed = the_hash("deepseek-v4.1", CUDA)
    tables = [a_table("fp8 + e8m0", height, 64, CUDA) for height in hashed.heights]
    ids = torch.randint(0, 20, (3, 12), device=CUDA)
    whole = lookup_reference.look_up(hashed, ids, tables)
    step, positions = ids[:, :1].clone(), torch.zeros(3, dtype=torch.int64, device=CUDA)
    back = LookBack(history=torch.zeros(3, 4, dtype=torch.int32, device=CUDA), positions=positions)
    ops.look_up_step(hashed, step, tables, back)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.look_up_step(hashed, step, tables, back)
    for place in range(12):
        step.copy_(ids[:, place : place + 1])
        positions.fill_(place)
        graph.replay()
        assert same_bits(out[:, :, 0], whole[:, :, place])


def test_compiled_it_is_one_operator() -> None:
    hashed = the_hash("engram-v1", CUDA)
    tables = [a_table("float32", height, 16, CUDA) for height in hashed.heights]
    ids, back = FORMS["dead"](CUDA)

    def twice(ids: torch.Tensor) -> torch.Tensor:
        return ops.look_up(hashed, ids, tables, back) * 2

    found = torch.compile(twice, fullgraph=True)(ids)
    assert torch.equal(found, lookup_reference.look_up(hashed, ids, tables, back) * 2)


def test_it_runs_on_the_current_stream() -> None:
    hashed = the_hash("engram-v1", CUDA)
    tables = [a_table("bfloat16", height, 64, CUDA) for height in hashed.heights]
    ids = torch.zeros(4, 2000, dtype=torch.int64, device=CUDA)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        ids.random_(0, 20)  # a launch on another stream would read the zeros
        found = ops.look_up(hashed, ids, tables)
    side.synchronize()
    assert same_bits(found, lookup_reference.look_up(hashed, ids, tables))


def test_the_device_of_the_ids_wins() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    other = torch.device("cuda:1")
    hashed = the_hash("engram-v1", other)
    tables = [a_table("bfloat16", height, 64, other) for height in hashed.heights]
    ids = FORMS["int32"](other)[0]
    assert same_bits(
        ops.look_up(hashed, ids, tables), lookup_reference.look_up(hashed, ids, tables)
    )
