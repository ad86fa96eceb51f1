"""A layer's rows in tiers read as the rows in one place do, whichever way they travel."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from lookup_cases import same_bits
from tier_cases import WIDTHS, a_store, expected, hot_rows, random_records, some_rows, tier_spec
from torch import Tensor

from engram_cli.errors import ArtifactError, InputError, RuntimeAttachError
from engram_cli.runtime.tiers.embedding import ColdShare, TieredEmbedding
from engram_cli.runtime.tiers.host import HostRows
from engram_cli.runtime.tiers.reader import TierReader
from engram_cli.runtime.tiers.staging import (
    MOST_STAGED,
    NUMBER_BYTES,
    VARIABLE,
    Block,
    StagingQueue,
    Tuning,
    local_tuning,
)

CPU = torch.device("cpu")
ROWS = 300
SMALL = Tuning(block_bytes=65536, ahead_bytes=2 * 65536, ring_buffer_bytes=65536)
CASES = [(dtype, dim) for dtype, dims in WIDTHS.items() for dim in dims]


class Below(HostRows):
    """Records that cannot be read in place, and may be slow or broken."""

    def __init__(self, records: Tensor, error: BaseException | None = None) -> None:
        super().__init__(records)
        self.error = error
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[int] = []
        self.closed = False

    def gather(self, rows: Tensor, out: Tensor) -> None:
        self._ask(rows)
        super().gather(rows, out)

    def _ask(self, rows: Tensor) -> None:
        self.gate.wait()
        if self.error is not None:
            raise self.error
        self.asked += rows.tolist()

    def close(self) -> None:
        self.closed = True


def below_store(rows: int = ROWS, dim: int = 64, **options: Any) -> tuple[TieredEmbedding, Tensor]:
    spec = tier_spec("bfloat16", dim)
    records = random_records(spec, rows)
    options.setdefault("cold", Below(records))
    options.setdefault("tuning", SMALL)
    store = a_store(spec, records, CPU, **options)
    store.path = "staged"
    store.cold.asked.clear()
    return store, records


@pytest.mark.parametrize("path", ["in-place", "staged"])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "dim"), CASES)
def test_vectors_are_those_of_one_place(dtype: str, dim: int, share: float, path: str) -> None:
    spec = tier_spec(dtype, dim)
    records = random_records(spec, ROWS)
    store = a_store(spec, records, CPU, share, dtype=torch.bfloat16)
    store.path = path
    rows = some_rows(ROWS, 3, 7, 6)
    wanted = torch.bfloat16 if spec.row_type.quantised else store.dtype
    found = store(rows)
    assert found.shape == (3, 7, 6 * dim)
    assert same_bits(found, expected(spec, records, rows, wanted))
    hot = int(torch.isin(rows, torch.from_numpy(hot_rows(ROWS, share))).sum())
    own = [rows.numel(), hot]
    assert store.tier_buffers.counted.tolist() == (
        [own, [0, 0]] if path == "staged" else [[0, 0], own]
    )


def test_no_rows_are_no_vectors() -> None:
    store, _ = below_store()
    assert store(torch.empty(2, 0, 6, dtype=torch.int64)).shape == (2, 0, 6 * 64)


def test_each_row_below_is_asked_for_once() -> None:
    store, _ = below_store()
    rows = some_rows(ROWS, 4, 9, 6)
    store(rows)
    cold = set(rows.flatten().tolist()) - set(hot_rows(ROWS).tolist())
    assert store.cold.asked == sorted(cold)
    assert store.staging_queue.transfers.rows == len(cold)
    assert store.staging_queue.transfers.bytes == len(cold) * 128


@pytest.mark.parametrize("ahead", [0, 65536, 10 * 65536])
def test_more_rows_than_a_block_holds(ahead: int) -> None:
    tuning = Tuning(block_bytes=65536, ahead_bytes=ahead, ring_buffer_bytes=65536)
    spec = tier_spec("bfloat16", 64)
    records = random_records(spec, 5000)
    staging_queue = StagingQueue(CPU, tuning)
    stores = [
        a_store(spec, records, CPU, staging_queue=staging_queue, cold=Below(records), hot_rows=None)
        for _ in range(3)
    ]
    for store in stores:
        store.path = "staged"
    rows = [some_rows(5000, 2, 300, 6, seed=seed) for seed in range(3)]
    reads = TierReader(dict(enumerate(stores)), rows)
    for place, of in enumerate(rows):
        assert same_bits(reads.take(place), expected(spec, records, of, torch.bfloat16))
    assert staging_queue.reserve(ahead)  # all of it was given back


def test_tuning_stays_within_a_part_of_the_table() -> None:
    usual = Tuning()
    assert usual.within(60_000_000, 264) == usual
    for rows in (1000, 200_000, 3_000_000):
        for devices in (1, 3):
            own = usual.within(rows, 264, devices=devices)
            most = max(rows * (264 + NUMBER_BYTES) // MOST_STAGED, devices * 4096)
            assert devices * own.device_bytes <= most + devices * 4096
            assert devices * own.pinned_bytes <= max(most, devices * own.ring_buffers * 4096)
            assert own.in_place_bytes == usual.in_place_bytes
    wide = Tuning(block_bytes=4096, ahead_bytes=0, ring_buffer_bytes=4096).within(10, 2**17)
    assert wide.block_bytes >= 2**17 + NUMBER_BYTES
    assert wide.ring_buffer_bytes >= 2**17


@pytest.mark.parametrize("rows", [50, 3000])
def test_a_call_of_more_rows_than_the_table_takes_what_was_said(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tier_spec("bfloat16", 64)
    records = random_records(spec, rows)
    tuning = Tuning().within(rows, records.shape[1])
    store = a_store(spec, records, CPU, tuning=tuning, cold=Below(records), hot_rows=None)
    store.path = "staged"
    sizes, send = [], store.staging_queue.send

    def noted(block: Block) -> None:
        sizes.append(block.staging.nbytes + NUMBER_BYTES * len(block.staging))
        send(block)

    monkeypatch.setattr(store.staging_queue, "send", noted)
    asked = some_rows(rows, 2, 500, 6, seed=1)
    assert same_bits(store(asked), expected(spec, records, asked, torch.bfloat16))
    assert len(sizes) > 1
    assert max(sizes) <= tuning.block_bytes
    assert tuning.ring_buffer_bytes <= max(4096, records.nbytes // MOST_STAGED)


@pytest.mark.parametrize("buffer", [4096, 20000])
def test_a_block_of_many_chunks(buffer: int) -> None:
    spec = tier_spec("bfloat16", 64)
    records = random_records(spec, 3000)
    store = a_store(spec, records, CPU, tuning=Tuning(ring_buffer_bytes=buffer, ring_buffers=2))
    store.path = "staged"
    for seed in range(3):
        rows = some_rows(3000, 2, 400, 6, seed=seed)
        assert same_bits(store(rows), expected(spec, records, rows, torch.bfloat16))


def test_all_layers_are_asked_for_before_one_is_taken() -> None:
    one, records = below_store()
    two, _ = below_store(staging_queue=one.staging_queue)
    rows = some_rows(ROWS, 2, 5, 6)
    reads = TierReader({0: one, 1: two}, [rows, rows])
    second = reads.take(1)  # in any order
    assert same_bits(second, expected(one.spec, records, rows, torch.bfloat16))
    assert same_bits(reads.take(0), second)


def test_a_failure_is_raised_where_the_rows_are_needed() -> None:
    spec = tier_spec("bfloat16", 64)
    records = random_records(spec, ROWS)
    broken = Below(records, ArtifactError("a file ends", "copy it again"))
    store, _ = below_store(cold=broken, hot_rows=None)
    fine, _ = below_store(staging_queue=store.staging_queue)
    rows = some_rows(ROWS, 2, 5, 6)
    reads = TierReader({0: store, 1: fine}, [rows, rows])
    with pytest.raises(ArtifactError, match="a file ends"):
        reads.take(0)
    assert reads.take(1).shape == (2, 5, 6 * 64)
    broken.error = None
    assert torch.equal(store(rows), fine(rows))
    assert store.staging_queue.reserve(SMALL.ahead_bytes)


def test_what_is_dropped_gives_its_memory_back() -> None:
    store, _ = below_store()
    store.cold.gate.clear()
    rows = some_rows(ROWS, 2, 30, 6)
    reads = TierReader({0: store}, [rows])
    assert not store.staging_queue.reserve(SMALL.ahead_bytes)
    store.cold.gate.set()
    reads.drop()
    assert store.staging_queue.reserve(SMALL.ahead_bytes)
    store.staging_queue.release(SMALL.ahead_bytes)
    reads = TierReader({0: store}, [rows])
    del reads
    gc.collect()
    assert store.staging_queue.reserve(SMALL.ahead_bytes)


def test_two_callers_that_fill_the_budget_do_not_wait_for_each_other() -> None:
    store, records = below_store(5000)
    rows = some_rows(5000, 1, 400, 6)
    held = TierReader({0: store}, [rows])  # has the budget and is not taken
    found: list[Tensor] = []
    other = threading.Thread(target=lambda: found.append(store(rows)), daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()
    assert same_bits(found[0], expected(store.spec, records, rows, torch.bfloat16))
    assert same_bits(held.take(0), found[0])


def test_many_threads_read_one_store() -> None:
    store, records = below_store()
    failures: list[int] = []

    def run(seed: int) -> None:
        for step in range(5):
            rows = some_rows(ROWS, 2, 9, 6, seed=seed * 10 + step)
            if not same_bits(store(rows), expected(store.spec, records, rows, torch.bfloat16)):
                failures.append(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_rows_in_inference_mode_and_out_of_it() -> None:
    store, _ = below_store()
    rows = some_rows(ROWS, 2, 5, 6)
    with torch.inference_mode():
        inside = store(rows)
    outside = store(rows)
    assert torch.equal(inside, outside)
    weight = torch.ones(6 * 64, requires_grad=True)
    (outside.float() * weight).sum().backward()
    assert weight.grad is not None


def test_close_ends_the_thread_and_refuses_what_comes_later() -> None:
    store, _ = below_store()
    staging_queue = store.staging_queue
    rows = some_rows(ROWS, 2, 5, 6)
    store(rows)
    worker = staging_queue._worker.thread
    assert worker.is_alive()
    reads = TierReader({0: store}, [rows])
    reads.take(0)
    cold = store.cold
    store.close()
    assert not worker.is_alive()
    assert cold.closed
    with pytest.raises(RuntimeAttachError, match="was detached"):
        store(rows)


def test_a_store_that_is_forgotten_ends_its_thread() -> None:
    store, _ = below_store()
    store(some_rows(ROWS, 2, 5, 6))
    worker, gone = store.staging_queue._worker.thread, weakref.ref(store.cold)
    del store
    gc.collect()
    worker.join(10)
    assert not worker.is_alive()
    assert gone() is None


def test_copies_share_rows_until_the_last_is_closed() -> None:
    store, _ = below_store()
    other = copy.deepcopy(torch.nn.ModuleList([store]))[0]
    rows = some_rows(ROWS, 2, 5, 6)
    store.close()
    assert other(rows).shape == (2, 5, 6 * 64)
    other.close()
    assert store.cold.closed
    with pytest.raises(RuntimeAttachError, match="cannot be pickled"):
        pickle.dumps(other)


def test_the_operator_is_one_of_torchs() -> None:
    from engram_cli.runtime.tiers.operator import tiered

    store, _ = below_store()
    rows = some_rows(ROWS, 2, 5, 6)
    arguments = (rows, store.number, store.width, store.dtype)
    torch.library.opcheck(tiered, arguments, test_utils=("test_schema", "test_faketensor"))
    compiled = torch.compile(store, fullgraph=True, backend="eager")
    assert torch.equal(compiled(rows), store(rows))
    torch._dynamo.reset()


def test_waiting_is_counted() -> None:
    store, _ = below_store()
    store.cold.gate.clear()
    threading.Timer(0.05, store.cold.gate.set).start()
    begin = time.perf_counter()
    store(some_rows(ROWS, 2, 5, 6))
    assert 0 < store.waited <= time.perf_counter() - begin


def test_rows_outside_the_table_are_refused() -> None:
    store, _ = below_store(hot_rows=None)
    with pytest.raises(InputError, match=r"outside 0\.\.299"):
        store(torch.tensor([[[3, ROWS + 2]]]))
    with pytest.raises(InputError, match="uint8"):
        HostRows(torch.zeros(3, 12, dtype=torch.uint8))


def test_a_tuning_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_tuning() == Tuning()
    path = tmp_path / "tuning.json"
    monkeypatch.setenv(VARIABLE, str(path))
    path.write_text('{"in_place_bytes": 0, "ring_buffers": 3}')
    assert local_tuning() == Tuning(in_place_bytes=0, ring_buffers=3)
    for bad in ('{"ring": 3}', "[1]", "{", '{"ring_buffers": 1}', '{"block_bytes": 1.5}'):
        path.write_text(bad)
        with pytest.raises(InputError):
            local_tuning()


def test_rows_are_few_by_those_that_are_not_hot() -> None:
    """The share of hot rows is that of the calls before; the first call counts all as cold."""
    spec = tier_spec("float32", 16)
    records = random_records(spec, ROWS)
    hot = np.arange(ROWS // 2)
    wanted = torch.cat((torch.arange(ROWS // 2), torch.arange(ROWS // 2, ROWS)[: ROWS // 6]))
    tuning = Tuning(in_place_bytes=len(wanted) * records.shape[1] // 3)
    store = a_store(spec, records, CPU, hot_rows=hot, tuning=tuning)
    assert not store._is_few(len(wanted))
    for _ in range(3):
        store(wanted.view(1, -1, 1))
        store._is_few(len(wanted))
    assert store._is_few(len(wanted))
    assert not store._is_few(2 * len(wanted))
    every = a_store(spec, records, CPU, hot_rows=None, tuning=tuning)
    for _ in range(3):
        every(wanted.view(1, -1, 1))
        assert not every._is_few(len(wanted))


def test_the_share_of_cold_rows_is_read_now_and_then() -> None:
    counted = torch.tensor([[0, 0], [0, 0]])
    share = ColdShare(counted)
    assert share.expected() == 1.0
    counted += torch.tensor([[30, 20], [10, 10]])
    found = [share.expected() for _ in range(8)]
    assert found[0] == 1.0  # the copy was made before
    assert found[-1] == pytest.approx(0.25)
    counted += torch.tensor([[0, 0], [960, 0]])
    assert share.expected() == pytest.approx(0.25)
    later = [share.expected() for _ in range(2 * 64)]
    assert later[-1] == pytest.approx(0.97)
