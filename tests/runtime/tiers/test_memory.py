"""A model whose rows lie in tiers computes what it does with all rows in one place, to the bit."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime.modes import MODES, fed, generated
from tiny_models import llama, logits, make_bundle, make_layout, make_spec, text, wake
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from engram_cli.errors import ArtifactError, InputError, RuntimeAttachError
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values
from engram_cli.rows import DTYPES as ROW_TYPES
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.runtime import attach, detach, load, parameter_groups, save_engram
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.tiers.staging import VARIABLE
from engram_cli.vocab.compress import CompressedVocab

DIM = 32
PLACEMENTS = ("host", "disk", "hbm=20KB,host", "hbm=20KB,disk")
DTYPES = ("float32", "bfloat16", "float16", "fp8_e8m0", "fp8", "int8")
TINY = '{"block_bytes": 4096, "ahead_bytes": 0, "ring_buffer_bytes": 4096}'


@pytest.fixture(autouse=True)
def _small_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any staging, so that budgets of some rows leave room, and blocks are many."""
    path = tmp_path / "tuning.json"
    path.write_text(TINY)
    monkeypatch.setenv(VARIABLE, str(path))


def the_bundle(path: Path, vocab: CompressedVocab, dtype: str = "bfloat16") -> Path:
    """A bundle of random rows of any dtype, with hits."""
    spec = make_spec(make_layout(vocab), dtype, dim=DIM)
    kind = ROW_TYPES.load(dtype)

    def rows(layer: int) -> list[tuple[int, Any]]:
        generator = np.random.default_rng(layer)
        whole = spec.tensor(layer, "rows")
        if kind.scaling is None:
            values = generator.standard_normal(whole.shape).astype(np.float32)
            if dtype == "bfloat16":
                return [(0, (values.view(np.uint32) >> 16).astype(np.uint16))]
            return [(0, values.astype(dtype))]
        raw = generator.integers(0, 126, whole.shape).astype(physical_dtype(whole.dtype))
        return [(0, raw)]

    def scales(layer: int) -> list[tuple[int, Any]]:
        generator = np.random.default_rng(100 + layer)
        whole = spec.tensor(layer, "scales")
        if whole.dtype == "float8_e8m0fnu":
            return [(0, generator.integers(120, 130, whole.shape).astype(np.uint8))]
        return [(0, generator.random(whole.shape).astype(np.float32) / 100)]

    def hits(layer: int) -> list[tuple[int, Any]]:
        return [(0, np.random.default_rng(layer).integers(0, 9, spec.rows(layer)).astype("<u4"))]

    write_bundle(
        path,
        spec,
        rows,
        lambda layer, zero: first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero),
        scales=scales,
        hits=hits,
        tool_version="0",
        shard_bytes=4096 + 100 * spec.row_bytes,
    )
    return path


Attached = Callable[[str], PreTrainedModel]


@pytest.fixture
def attached(tmp_path: Path, small_vocab: CompressedVocab) -> Attached:
    """A tiny Llama with the bundle placed as said, twice the same."""
    path = the_bundle(tmp_path / "engram", small_vocab)

    def make(placement: str, **options: Any) -> PreTrainedModel:
        model = llama(small_vocab.vocab_size)
        wake(attach(model, path, placement=placement, **options))
        return model

    return make


def staged(model: PreTrainedModel) -> Memory:
    """The model's memory, which reads nothing in place."""
    memory: Memory = model.engram
    assert memory.tiers is not None
    for store in memory.tiers.stores.values():
        store.path = "staged"
    return memory


def our_threads() -> list[str]:
    """The threads that serve tiers now, but for pools, which sleep until the process ends."""
    names = [t.name for t in threading.enumerate() if t.name.startswith("engram-")]
    return [name for name in names if not name.startswith(("engram-gather-", "engram-cpu"))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_equal_to_the_bit(
    dtype: str, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    path = the_bundle(tmp_path / "engram", small_vocab, dtype)
    ids = text(200, 2, 19)
    found = []
    for placement in ("hbm", *PLACEMENTS):
        model = llama(small_vocab.vocab_size)
        memory = attach(model, path, placement=placement)
        wake(memory)
        assert (memory.tiers is None) == (placement == "hbm")
        assert "\n".join(memory.placement.lines())
        found.append(logits(model, ids))
        if memory.tiers is not None:
            counted = memory.counters
            assert counted.hot + counted.in_place + counted.staged == 2 * ids.numel() * 4
            assert (counted.hot > 0) == placement.startswith("hbm")
            if placement == "host":
                staged(model)
                found.append(logits(model, ids))
        detach(model)
    assert not torch.equal(found[0], logits(llama(small_vocab.vocab_size), ids))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("placement", ["host", "hbm=20KB,disk"])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "right padding"])
def test_every_way_to_run_a_model(mode: str, placement: str, attached: Attached) -> None:
    model = attached(placement)
    staged(model)
    MODES[mode](model)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_pieces_with_a_cache_and_beams_are_those_of_one_place(
    placement: str, attached: Attached
) -> None:
    here, there = attached("hbm"), attached(placement)
    ids = text(200, 2, 14)
    pieces = list(ids.split([6, 1, 1, 6], dim=1))
    # Decode steps project rows in memory in a loop, others by torch: sums in another order.
    found = [fed(m, pieces, DynamicCache(config=m.config)) for m in (here, there)]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert torch.equal(*(generated(m, ids, num_beams=3) for m in (here, there)))


def test_gates_learn_and_rows_stay(attached: Attached) -> None:
    model = attached("host")
    model.train()
    assert not [n for n, _ in model.engram.named_parameters() if "multi_head_embedding" in n]
    groups = parameter_groups(model, lr=1e-2)
    assert [group["name"] for group in groups] == ["backbone"]
    optimizer = torch.optim.AdamW(groups)
    ids = text(200, 2, 9)
    losses = []
    for _ in range(4):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("option", ["rows_trainable", "sparse_gradients"])
def test_trainable_rows_are_refused(option: str, attached: Attached) -> None:
    with pytest.raises(RuntimeAttachError, match="rows placed on disk are frozen"):
        attached("disk", **{option: True})
    detach(attached("disk", rows_trainable=False))


def test_a_small_table_goes_under_small_budgets(
    attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)  # staging as it comes
    here, ids = attached("hbm"), text(200, 2, 30)
    for placement in ("hbm=20KB,host", "hbm=20KB,disk", "disk", "host"):
        model = attached(placement)
        memory: Memory = model.engram
        placed = memory.placement
        assert placed.hbm_bytes <= 20_000
        assert placed.hbm_bytes < placed.spec.table_bytes
        assert (placed.staging.hbm > 0) == (placed.cold == "disk"), "a CPU reads the host in place"
        staging_queue = next(iter(memory.tiers.stores.values())).staging_queue
        assert placed.staging.hbm in (0, staging_queue.tuning.device_bytes)
        assert placed.staging.host in (0, staging_queue.tuning.pinned_bytes)
        assert torch.equal(logits(model, ids), logits(here, ids))
    for wrong in (5, b"host"):
        with pytest.raises(InputError, match="is no text"):
            attached(wrong)


def test_what_does_not_fit_is_refused_before_it_is_made(
    attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGRAM_HOST_MEMORY", "10KB")
    with pytest.raises(InputError, match="10,000 are free"):
        attached("host")
    monkeypatch.setenv("ENGRAM_HOST_MEMORY", "much")
    with pytest.raises(InputError, match="ENGRAM_HOST_MEMORY"):
        attached("host")
    with pytest.raises(InputError, match="no tier 'tape'"):
        attached("tape")


def test_rows_asked_for_ahead_serve_the_call_that_needs_them(attached: Attached) -> None:
    here, there = attached("hbm"), attached("host")
    memory = staged(there)
    ids, other = text(200, 2, 14), text(200, 2, 14, seed=5)
    memory.prefetch(ids)
    assert torch.equal(logits(there, ids), logits(here, ids))
    assert (memory.counters.ahead_used, memory.counters.ahead_dropped) == (1, 0)
    asked = memory.counters.staged
    memory.prefetch(ids)
    assert torch.equal(logits(there, ids[:1]), logits(here, ids[:1]))  # another shape
    memory.prefetch(ids)
    assert torch.equal(logits(there, other), logits(here, other))  # other ids
    memory.prefetch(ids)
    memory.prefetch(other)
    assert torch.equal(logits(there, other), logits(here, other))
    assert (memory.counters.ahead_used, memory.counters.ahead_dropped) == (2, 3)
    assert memory.counters.staged > asked


def test_rows_asked_for_ahead_of_a_decode_step(attached: Attached) -> None:
    here, there = attached("hbm"), attached("disk")
    ids = text(200, 2, 8)
    caches = [DynamicCache(config=here.config), DynamicCache(config=there.config)]
    found = []
    for model, cache in zip((here, there), caches, strict=True):
        fed(model, [ids[:, :7]], cache)
        if model is there:
            model.engram.prefetch(ids[:, 7:], past_key_values=cache)
        found.append(fed(model, [ids[:, 7:]], cache))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert there.engram.counters.ahead_used == 1


def test_prefetch_where_all_rows_are_near_does_nothing(attached: Attached) -> None:
    model = attached("hbm")
    model.engram.prefetch(text(200, 1, 4))
    assert model.engram.counters.hot == 0


def test_a_failure_reaches_the_caller_and_the_next_call_works(attached: Attached) -> None:
    model = attached("host")
    memory = staged(model)
    ids = text(200, 2, 9)
    expected = logits(model, ids)
    store = memory.tiers.stores[1]
    gather = store.cold.gather

    def broken(rows: Tensor, out: Tensor) -> None:
        raise ArtifactError("the disk is gone", "plug it in")

    store.cold.gather = broken
    with pytest.raises(ArtifactError, match="the disk is gone"):
        logits(model, ids)
    memory.prefetch(ids)
    with pytest.raises(ArtifactError, match="the disk is gone"):
        logits(model, ids)
    store.cold.gather = gather
    assert torch.equal(logits(model, ids), expected)


def test_a_forward_that_fails_between_layers_leaves_nothing_behind(attached: Attached) -> None:
    model = attached("host")
    memory = staged(model)
    ids = text(200, 2, 9)
    expected = logits(model, ids)

    def fail(*_: Any) -> None:
        raise ValueError("no")

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            logits(model, ids)
    handle.remove()
    assert torch.equal(logits(model, ids), expected)
    staging_queue = next(iter(memory.tiers.stores.values())).staging_queue
    assert staging_queue.reserve(staging_queue.tuning.ahead_bytes)


def test_detach_gives_memory_and_threads_back(attached: Attached) -> None:
    model = attached("hbm=20KB,disk")
    memory = staged(model)
    logits(model, text(200, 2, 9))
    memory.prefetch(text(200, 2, 9))
    assert our_threads()
    detach(model)
    assert not our_threads()
    model = attached("hbm=20KB,disk")
    staged(model)
    logits(model, text(200, 2, 9))
    del model, memory
    gc.collect()
    assert not our_threads()


def test_a_copy_of_the_model_shares_the_rows(attached: Attached) -> None:
    model = attached("host")
    ids = text(200, 2, 9)
    expected = logits(model, ids)
    other = copy.deepcopy(model)
    assert torch.equal(logits(other, ids), expected)
    detach(model)
    assert torch.equal(logits(other, ids), expected)


@pytest.mark.parametrize("placement", ["host", "hbm=20KB,disk"])
def test_there_and_back(placement: str, attached: Attached, tmp_path: Path) -> None:
    model, ids = attached(placement), text(200, 2, 9)
    expected = logits(model, ids)
    save_engram(model, tmp_path / "saved")
    detach(model)
    memory = attach(model, tmp_path / "saved")
    assert memory.hits
    assert torch.equal(logits(model, ids), expected)
    for again in ("host", None, "disk", "hbm"):
        load(model, tmp_path / "saved", placement=again)
        assert torch.equal(logits(model, ids), expected)
        assert (memory.tiers is None) == (again == "hbm")
    load(model, tmp_path / "saved")
    assert torch.equal(logits(model, ids), expected)


def test_rows_move_from_one_placement_to_another(
    small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    spec = make_spec(make_layout(small_vocab), dim=5)
    path = make_bundle(tmp_path / "engram", spec, shard_bytes=8192)
    model, ids = llama(small_vocab.vocab_size), text(200, 2, 9)
    wake(attach(model, path))
    expected = logits(model, ids)
    load(model, path, placement="host")
    wake(model.engram)
    assert torch.equal(logits(model, ids), expected)


def test_one_graph_of_a_decode_step(attached: Attached) -> None:
    torch._dynamo.reset()
    model = attached("hbm=20KB,host")
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    ids = text(200, 2, 9)
    expected = logits(model, ids, use_cache=False)
    cache = StaticCache(config=model.config, max_cache_len=16)
    first = fed(model, [ids[:, :5]], cache)
    rest = fed(compiled, list(ids[:, 5:].split(1, dim=1)), cache)
    torch.testing.assert_close(torch.cat((first, rest), 1), expected, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()
