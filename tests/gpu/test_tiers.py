"""Tiers on a GPU: the interpreter's checks, and pinned memory, streams, graphs and threads."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.interpreted import checks
from lookup_cases import same_bits
from tier_cases import a_store, expected, host_records, random_records, some_rows, tier_spec

from engram_cli.runtime.tiers.host import HostRows, host_memory, shared_memory
from engram_cli.runtime.tiers.reader import TierReader
from engram_cli.runtime.tiers.staging import StagingQueue, Tuning
from engram_cli.shared_copy import Contents

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

globals().update(checks("check_tiers"))

CUDA = torch.device("cuda")
ROWS = 50_000
SMALL = Tuning(block_bytes=2**20, ahead_bytes=2**21, ring_buffer_bytes=2**18)


def the_layer(**options: Any) -> tuple[Any, torch.Tensor]:
    spec = tier_spec("fp8_e8m0", 256)
    records = random_records(spec, ROWS)
    return a_store(spec, records, CUDA, dtype=torch.bfloat16, **options), records


def right(store: Any, records: torch.Tensor, rows: torch.Tensor, found: torch.Tensor) -> bool:
    return same_bits(found.cpu(), expected(store.spec, records, rows, torch.bfloat16))


def test_host_memory_is_pinned_and_given_back() -> None:
    size = 2**30 + 2**20  # two registrations
    held = host_memory(size, pinned=True)
    assert held.is_pinned()
    assert held[-1:].is_pinned()
    address = held.data_ptr()
    del held
    gc.collect()
    again = host_memory(size, pinned=True)
    assert again.is_pinned()
    free = torch.empty(4096, dtype=torch.uint8)
    assert not free.is_pinned()
    del again
    assert address > 0


@pytest.mark.parametrize("path", ["in-place", "staged", "captured"])
def test_a_shared_copy_is_read_as_own_memory(path: Any, shared_base: Path) -> None:
    spec = tier_spec("fp8_e8m0", 256)
    records = random_records(spec, ROWS)
    what = Contents(about={"test": 1}, size=records.numel())
    filled, release = shared_memory(what, lambda held, _: held.copy_(records.view(-1)), pinned=True)
    held, other = shared_memory(what, lambda *_: pytest.fail("it is there"), pinned=True)
    assert held.data_ptr() != filled.data_ptr()
    assert held.is_pinned()
    del filled
    gc.collect()
    release()  # the copy stays, for the other
    cold = HostRows(held.view(-1, 264), other)
    store = a_store(spec, records, CUDA, dtype=torch.bfloat16, tuning=SMALL, cold=cold)
    del held
    rows = some_rows(ROWS, 2, 64, 24)
    asked = rows.to(CUDA)
    if path == "captured":
        store(asked)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = store(asked)
        graph.replay()
    else:
        store.path = path
        found = store(asked)
    assert right(store, records, rows, found)
    assert any(shared_base.iterdir())
    store.close()
    assert not any(shared_base.iterdir())


@pytest.mark.parametrize("path", ["in-place", "staged", None])
@pytest.mark.parametrize("tokens", [1, 64, 700])
def test_vectors_are_those_of_one_place(tokens: int, path: Any) -> None:
    store, records = the_layer(tuning=SMALL)
    store.path = path
    rows = some_rows(ROWS, 2, tokens, 24)
    for _ in range(3):
        assert right(store, records, rows, store(rows.to(CUDA)))
    store.close()


def test_the_ring_is_refilled_while_the_device_is_busy() -> None:
    store, records = the_layer(tuning=SMALL)
    store.path = "staged"
    heavy = torch.randn(4096, 4096, device=CUDA)
    all_rows = [some_rows(ROWS, 1, 300, 24, seed=seed) for seed in range(6)]
    found = []
    for rows in all_rows:
        heavy = (heavy @ heavy).clamp(-1, 1)
        found.append(store(rows.to(CUDA)))
    for rows, one in zip(all_rows, found, strict=True):
        assert right(store, records, rows, one)


def test_another_stream_and_a_stream_that_takes_what_another_asked_for() -> None:
    store, records = the_layer(tuning=SMALL)
    rows = some_rows(ROWS, 1, 200, 24)
    side = torch.cuda.Stream()
    for path in ("in-place", "staged"):
        store.path = path
        with torch.cuda.stream(side):
            own = rows.to(CUDA)
            reads = TierReader({0: store}, [own])
            inside = store(own)
            side.synchronize()
        outside = reads.take(0)
        assert right(store, records, rows, inside)
        assert right(store, records, rows, outside)


def test_a_graph_replays_on_new_rows() -> None:
    store, records = the_layer()
    other, more = the_layer(staging_queue=store.staging_queue)
    held = some_rows(ROWS, 4, 1, 24).to(CUDA)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        reads = TierReader({0: store, 1: other}, [held, held])
        return reads.take(0).clone(), reads.take(1).clone()

    warm = torch.cuda.Stream()
    with torch.cuda.stream(warm):
        step()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for seed in range(3):
        rows = some_rows(ROWS, 4, 1, 24, seed=seed)
        held.copy_(rows)
        graph.replay()
        assert right(store, records, rows, found[0])
        assert right(other, more, rows, found[1])


def test_a_large_call_in_a_graph_is_read_in_place() -> None:
    store, records = the_layer()
    held = some_rows(ROWS, 1, 700, 24).to(CUDA)
    store(held)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = store(held)
    graph.replay()
    assert right(store, records, held, found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_compiled_step_is_one_graph() -> None:
    store, records = the_layer()

    def step(rows: torch.Tensor) -> torch.Tensor:
        return store(rows) * 2

    compiled = torch.compile(step, fullgraph=True, mode="reduce-overhead")
    for seed in range(5):
        rows = some_rows(ROWS, 4, 1, 24, seed=seed)
        twice = 2 * expected(store.spec, records, rows, torch.bfloat16)
        assert torch.equal(compiled(rows.to(CUDA)).cpu(), twice)


def test_two_stores_in_two_threads() -> None:
    failures: list[int] = []
    staging_queue = StagingQueue(torch.device("cuda", 0), SMALL)
    stores = [
        the_layer(staging_queue=staging_queue),
        the_layer(tuning=SMALL),
        the_layer(staging_queue=staging_queue),
    ]

    def run(number: int) -> None:
        store, records = stores[number]
        store.path = "staged"
        with torch.cuda.stream(torch.cuda.Stream()):
            for seed in range(6):
                rows = some_rows(ROWS, 1, 400, 24, seed=10 * number + seed)
                if not right(store, records, rows, store(rows.to(CUDA))):
                    failures.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_was_asked_for_ahead_and_dropped() -> None:
    store, records = the_layer(tuning=SMALL)
    store.path = "staged"
    rows = some_rows(ROWS, 1, 600, 24)
    for _ in range(8):
        reads = TierReader({0: store}, [rows.to(CUDA)])
        reads.drop()
        assert right(store, records, rows, store(rows.to(CUDA)))


def test_records_that_lie_in_memory_already() -> None:
    spec = tier_spec("bfloat16", 64)
    records = random_records(spec, ROWS)
    cold = host_records(records, CUDA)
    assert cold.records.is_pinned()
    store = a_store(spec, records, CUDA, cold=cold, hot_rows=None)
    rows = some_rows(ROWS, 3, 1, 16)
    assert same_bits(store(rows.to(CUDA)).cpu(), expected(spec, records, rows, torch.bfloat16))
    assert store.tier_buffers.counted.tolist() == [[0, 0], [48, 0]]


def test_a_model_in_tiers(
    tmp_path: Path, shared_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models = pytest.importorskip("tiny_models")
    from small_tokenizers import byte_level_tokenizer

    from engram_cli.runtime import attach, detach
    from engram_cli.vocab.compress import compress_vocab

    tuning = tmp_path / "tuning.json"
    tuning.write_text('{"block_bytes": 4096, "ahead_bytes": 8192, "ring_buffer_bytes": 4096}')
    monkeypatch.setenv("ENGRAM_TIERS_TUNING", str(tuning))
    monkeypatch.setenv("ENGRAM_HOST_MEMORY", "1GB")
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    vocab = compress_vocab(tmp_path / "tokenizer.json")
    spec = tiny_models.make_spec(tiny_models.make_layout(vocab), "bfloat16", dim=32)
    bundle = tiny_models.make_bundle(tmp_path / "bundle", spec)
    ids = torch.randint(3, vocab.vocab_size, (2, 30), generator=torch.Generator().manual_seed(0))
    ids = ids.to(CUDA)

    def run(placement: str, path: str | None = None) -> list[torch.Tensor]:
        model = tiny_models.llama(vocab.vocab_size).to(CUDA)
        memory = attach(model, bundle, placement=placement)
        for name, parameter in memory.named_parameters():
            if "multi_head" not in name:
                torch.manual_seed(int(parameter.numel()))
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
        rows = [name for name, _ in memory.named_parameters() if "multi_head" in name]
        assert bool(rows) == (placement == "hbm")
        for store in memory.tiers.stores.values() if memory.tiers else ():
            store.path = path
        with torch.no_grad():
            memory.prefetch(ids)
            found = [model(input_ids=ids).logits]
            options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2}
            found.append(model.generate(input_ids=ids, **options))
        assert memory.counters.ahead_used == (placement != "hbm")
        detach(model)
        return found

    here = [x.clone() for x in run("hbm")]
    for placement, path in (
        *(("host", None), ("host", "staged"), ("host,shared", None), ("host,shared", "staged")),
        ("disk", None),
    ):
        there = run(placement, path)
        assert not any(shared_base.iterdir())
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
