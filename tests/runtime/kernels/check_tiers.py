"""The tiers' kernels equal their twins: run by test_interpreted.py, and by tests/gpu on a GPU."""

from __future__ import annotations

import pytest
import torch
from lookup_cases import same_bits
from shard_cases import simulated
from tier_cases import WIDTHS, a_store, expected, hot_rows, random_records, some_rows, tier_spec
from torch import Tensor

from engram_cli.runtime import ops
from engram_cli.runtime.sharding.hot import HotMemory
from engram_cli.runtime.tiers import records as twin
from engram_cli.runtime.tiers import with_index
from engram_cli.runtime.tiers.embedding import TieredEmbedding
from engram_cli.runtime.tiers.hot_set import hot_set
from engram_cli.runtime.tiers.records import TierBuffers

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [(dtype, dim) for dtype, dims in WIDTHS.items() for dim in dims]
ROWS = 300


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert ops.has_kernels(DEVICE)


def read(
    store: TieredEmbedding, rows: Tensor, slots: Tensor | None, **tier_buffers: Tensor
) -> Tensor:
    out = torch.full((len(rows), store.width), float("nan"), dtype=store.dtype, device=DEVICE)
    own = store.tier_buffers
    if tier_buffers:
        own = TierBuffers(
            form=own.form, counted=own.counted, hot=own.hot, hot_set=own.hot_set, **tier_buffers
        )
    ops.read_tiers(own, rows, slots, out)
    return out


@pytest.mark.parametrize(
    ("dtype", "dim", "share"),
    [(*case, 0.3) for case in CASES] + [("int8", 33, 1.0), ("fp8_e8m0", 32, 0.0), ("fp8", 7, 0.0)],
)
def test_rows_in_place(dtype: str, dim: int, share: float) -> None:
    spec = tier_spec(dtype, dim)
    records = random_records(spec, ROWS)
    store = a_store(spec, records, DEVICE, share)
    rows = some_rows(ROWS, 37).to(DEVICE)
    found = read(store, rows, None)
    assert same_bits(found.cpu(), expected(spec, records, rows[:, None], store.dtype))
    hot = int(torch.isin(rows.cpu(), torch.from_numpy(hot_rows(ROWS, share))).sum())
    assert store.tier_buffers.counted.tolist() == [[0, 0], [37, hot]]


@pytest.mark.parametrize(("dtype", "dim"), CASES)
@pytest.mark.parametrize("world", [2, 3])
def test_hot_rows_of_several_owners(dtype: str, dim: int, world: int) -> None:
    spec, device = tier_spec(dtype, dim), with_index(DEVICE)
    records, hot = random_records(spec, ROWS), hot_rows(ROWS)
    memory = HotMemory(simulated(world, device), {0: 5, 1: len(hot)}, records.shape[1])
    for rank in range(world):
        own = records[torch.from_numpy(hot[rank::world])]
        memory.own(1, rank)[: len(own)].copy_(own)
    peers = memory.of(1, device)
    store = a_store(spec, records, DEVICE, hot_rows=hot, peers=peers)
    rows = some_rows(ROWS, 37).to(DEVICE)
    found = read(store, rows, None)
    assert same_bits(found.cpu(), expected(spec, records, rows[:, None], store.dtype))
    place = torch.searchsorted(torch.from_numpy(hot), rows.cpu())
    is_hot = torch.isin(rows.cpu(), torch.from_numpy(hot))
    assert store.tier_buffers.counted.tolist() == [[0, 0], [37, int(is_hot.sum())]]
    assert int(peers.here) == int((is_hot & (place % world == 0)).sum())


@pytest.mark.parametrize(("dtype", "dim"), CASES)
def test_rows_by_slots(dtype: str, dim: int) -> None:
    spec = tier_spec(dtype, dim)
    records = random_records(spec, ROWS)
    store = a_store(spec, records, DEVICE)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    slots = torch.empty_like(order)
    slots[order] = torch.arange(ROWS)
    rows = some_rows(ROWS, 41)
    staged = records[order].to(DEVICE)
    found = read(store, rows.to(DEVICE), slots[rows].to(DEVICE), cold=staged)
    assert same_bits(found.cpu(), expected(spec, records, rows[:, None], store.dtype))
    assert not store.tier_buffers.counted.any()


@pytest.mark.parametrize("height", [ROWS, 2**31 - 1, 2**31, 2**33])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("count", [1, 2, 1500, 5000])
def test_keys_and_slots_equal_the_twins(count: int, share: float, height: int) -> None:
    hot = hot_rows(ROWS, share)
    own = hot_set(hot, ROWS, DEVICE) if len(hot) else None
    rows = some_rows(ROWS, count).to(DEVICE)
    both = []
    for implementation in (twin, ops):
        keys, order = implementation.cold_keys(rows, own, height).sort(stable=True)
        assert keys.dtype == (torch.int32 if height < 2**31 else torch.int64)
        slots = torch.full((count,), -1, dtype=torch.int32, device=DEVICE)
        found = torch.full((count + 1,), -1, dtype=keys.dtype, pin_memory=DEVICE.type == "cuda")
        counted = torch.zeros(2, 2, dtype=torch.int64, device=DEVICE)
        implementation.find_slots(keys, order, height, slots, found, counted)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        both.append((keys, slots, found[: 1 + int(found[0])], counted.view(-1)))
    for theirs, mine in zip(*both, strict=True):
        assert torch.equal(theirs, mine)
    slots, found, counted = both[0][1:]
    cold = ~torch.isin(rows, torch.from_numpy(hot).to(DEVICE))
    assert torch.equal(found[1:][slots[cold].cpu()].long(), rows[cold].cpu())
    assert torch.equal(found[1:].long(), rows[cold].unique().cpu())
    assert counted.tolist() == [count, int((~cold).sum()), 0, 0]


def test_the_rank_of_every_row() -> None:
    spec = tier_spec("float32", 2)
    records = random_records(spec, 1000)
    records.view(torch.int64).copy_(torch.arange(1000)[:, None])
    store = a_store(spec, records, DEVICE, 0.5)
    rows = torch.arange(1000, device=DEVICE)
    slots = torch.zeros_like(rows)
    found = read(store, rows, slots, cold=torch.full((1, 8), 255, dtype=torch.uint8).to(DEVICE))
    number = found.view(torch.int64)[:, 0].cpu()
    hot = torch.from_numpy(hot_rows(1000, 0.5))
    assert torch.equal(number[hot], hot)
    assert int((number == -1).sum()) == 1000 - len(hot)


@pytest.mark.parametrize("path", ["in-place", "staged"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_store_reads_with_kernels(dtype: str, path: str) -> None:
    spec = tier_spec(dtype, 64)
    records = random_records(spec, ROWS)
    # The interpreter cuts numbers off where a GPU rounds them to bfloat16.
    quantised = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    store = a_store(spec, records, DEVICE, dtype=quantised)
    store.path = path
    rows = some_rows(ROWS, 2, 5, 6)
    found = store(rows.to(DEVICE))
    assert same_bits(found.cpu(), expected(spec, records, rows, store.dtype))
