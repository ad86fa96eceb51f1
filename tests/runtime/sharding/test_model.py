"""A model whose rows are distributed computes what it does with all rows in one place.

In one process without a GPU the parts of all ranks are in plain memory.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from runtime.modes import generated
from runtime.tiers.test_memory import DTYPES, the_bundle
from tiny_models import llama, logits, text, wake

from engram_cli.errors import InputError, RuntimeAttachError
from engram_cli.runtime import attach, detach, load, save_engram
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.sharding.rows import DistributedRows
from engram_cli.runtime.tiers.staging import VARIABLE
from engram_cli.vocab.compress import CompressedVocab

PLACEMENTS = (
    "shard=2",
    "shard=3,replicate=20KB",
    "hbm=8KB,shard=2,host",
    "hbm=5KB,shard=3,disk",
)


@pytest.fixture(autouse=True)
def _small_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuning.json"
    path.write_text('{"block_bytes": 4096, "ahead_bytes": 0, "ring_buffer_bytes": 4096}')
    monkeypatch.setenv(VARIABLE, str(path))


def attached(
    bundle: Path, vocab: CompressedVocab, placement: str
) -> tuple[torch.nn.Module, Memory]:
    """A tiny Llama with a memory that matters."""
    model = llama(vocab.vocab_size)
    memory = attach(model, bundle, placement=placement)
    wake(memory)
    return model, memory


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_equal_those_of_one_place(
    dtype: str, placement: str, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    bundle = the_bundle(tmp_path / "bundle", small_vocab, dtype)
    ids = text(small_vocab.vocab_size, 2, 20)
    whole, _ = attached(bundle, small_vocab, "hbm")
    model, memory = attached(bundle, small_vocab, placement)
    assert torch.equal(logits(model, ids), logits(whole, ids))
    assert torch.equal(generated(model, ids), generated(whole, ids))
    counters = memory.counters
    below = counters.host + counters.disk
    asked = counters.local + counters.peer + below
    assert asked % (2 * memory.spec.layout.columns) == 0
    assert counters.peer > 0
    assert (below > 0) == placement.startswith("hbm")
    assert (counters.disk > 0) == placement.endswith("disk")
    if "replicate" in placement and memory.placement.caught > 0.5:
        assert counters.local > asked // 2  # a third of the rows, and the hottest
    detach(model)


def test_what_is_said_of_it(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    bundle = the_bundle(tmp_path / "bundle", small_vocab)
    _, memory = attached(bundle, small_vocab, "shard=2,replicate=20KB")
    first, *devices = memory.notes
    assert memory.placement is not None
    assert memory.placement.lines() == [first]
    assert "of 2 GPUs: all 888 rows, a copy of the " in first
    assert [line.split(", part ")[1][:6] for line in devices] == ["1 of 2", "2 of 2"]
    _, memory = attached(bundle, small_vocab, "hbm=8KB,shard=2,host")
    first, second = memory.notes
    assert "of 2 GPUs: the " in first
    assert "hottest of 888 rows" in first
    assert second.startswith("host: all 888 rows")


@pytest.mark.parametrize("placement", PLACEMENTS[:2])
def test_rows_are_saved_and_loaded(
    placement: str, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    bundle = the_bundle(tmp_path / "bundle", small_vocab)
    model, memory = attached(bundle, small_vocab, placement)
    assert not [name for name in memory.state_dict() if "embedding.weight" in name]
    assert not [name for name, _ in memory.named_parameters() if "multi_head" in name]
    ids = text(small_vocab.vocab_size, 2, 20)
    before = logits(model, ids)
    save_engram(model, tmp_path / "saved")
    again = llama(small_vocab.vocab_size)
    attach(again, tmp_path / "saved")
    assert torch.equal(logits(again, ids), before)
    load(model, tmp_path / "saved", placement="hbm")
    assert torch.equal(logits(model, ids), before)
    load(model, tmp_path / "saved", placement=placement)
    assert torch.equal(logits(model, ids), before)


def test_copies_share_rows_until_the_last_is_detached(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    bundle = the_bundle(tmp_path / "bundle", small_vocab)
    model, memory = attached(bundle, small_vocab, "shard=2")
    ids = text(small_vocab.vocab_size, 1, 9)
    before, twin = logits(model, ids), copy.deepcopy(model)
    rows = next(m for m in memory.modules() if isinstance(m, DistributedRows))
    detach(model)
    assert torch.equal(logits(twin, ids), before)
    with pytest.raises(RuntimeAttachError, match="cannot be pickled"):
        pickle.dumps(rows)
    detach(twin)
    with pytest.raises(RuntimeAttachError, match="was detached"):
        rows(torch.zeros(1, 1, 1, dtype=torch.int64))


def test_the_operator_reads_distributed_rows(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    from engram_cli.runtime.tiers.operator import tiered

    bundle = the_bundle(tmp_path / "bundle", small_vocab)
    _, memory = attached(bundle, small_vocab, "shard=2")
    rows = next(m for m in memory.modules() if isinstance(m, DistributedRows))
    arguments = (torch.arange(12).view(2, 1, 6), rows.number, rows.width, rows.dtype)
    torch.library.opcheck(tiered, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ("shard", "there is no GPU"),
        ("shard=2,replicate=200", "holds no row"),
        ("hbm=1KB,shard=2,replicate=2KB", "do not hold all rows"),
    ],
)
def test_what_is_refused(
    placement: str, message: str, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    bundle = the_bundle(tmp_path / "bundle", small_vocab)
    with pytest.raises(InputError, match=message):
        attach(llama(small_vocab.vocab_size), bundle, placement=placement)


def test_rows_that_are_read_do_not_learn(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    bundle = the_bundle(tmp_path / "bundle", small_vocab)
    model = llama(small_vocab.vocab_size)
    with pytest.raises(RuntimeAttachError, match="over GPUs, to be read are frozen"):
        attach(model, bundle, placement="shard=2", rows_trainable=True)
