"""Rows that are exchanged between processes equal those of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lookup_cases import same_bits
from runtime.sharding.ranks import DTYPES, some_rows
from shard_cases import whole
from tiny_models import llama, text, wake

from engram_cli.runtime import attach, lookup_reference
from engram_cli.vocab.compress import CompressedVocab

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module", params=[3, 4], ids=["one host of 3", "two hosts of 2"])
def found(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    bundle: Path,
    small_vocab: CompressedVocab,
) -> list[dict[str, Any]]:
    """What each rank found."""
    out, world = tmp_path_factory.mktemp("ranks") / "out", request.param
    given = [str(world), str(bundle), str(small_vocab.vocab_size), str(out)]
    command = [sys.executable, str(SCRIPT), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}.{rank}") for rank in range(world)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_equal_those_of_one_process(dtype: str, found: list[dict[str, Any]]) -> None:
    spec, _, tables = whole(dtype, torch.device("cpu"))
    size = 3 if len(found) == 3 else 2
    for rank, own in enumerate(found):
        rows = some_rows(rank % size, spec.rows(spec.layers[1]))
        wanted = torch.float32 if spec.row_type.quantised else tables[1].values.dtype
        expected = lookup_reference.vectors([tables[1]], rows[None], wanted)[0]
        assert same_bits(own[dtype], expected)
        here = int((rows % size == rank % size).sum())
        assert own[f"{dtype}, counted"] == (rows.numel(), here)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounded_messages_bring_the_same(dtype: str, found: list[dict[str, Any]]) -> None:
    for own in found:
        assert torch.equal(own[f"{dtype}, 24, part 0"], own[f"{dtype}, None, part 0"])
        assert (f"{dtype}, 24, part 1" in own) == (dtype in ("fp8_e8m0", "int4"))
        if f"{dtype}, 24, part 1" in own:
            assert torch.equal(own[f"{dtype}, 24, part 1"], own[f"{dtype}, None, part 1"])


def test_a_model_in_several_processes(
    found: list[dict[str, Any]], bundle: Path, small_vocab: CompressedVocab
) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    for rank, own in enumerate(found):
        with torch.no_grad():
            expected = model(input_ids=text(200, 2, 9, seed=rank)).logits
        assert torch.equal(own["shard"]["logits"], expected)
        assert own["shard"]["peer"] > 0
        size = 3 if len(found) == 3 else 2
        last = own["shard"]["notes"][-1]
        assert f"part {rank % size + 1} of {size}" in last
        assert "by exchange (the rows are on the CPU)" in last


def test_all_ranks_raise_the_error_of_one(found: list[dict[str, Any]]) -> None:
    if len(found) != 4:
        pytest.skip("tried with four")
    first, second, *other = (own["refused"] for own in found)
    assert first.startswith("the rows need ")
    assert second.startswith("rank 0 of the rows: the rows need ")
    assert other == ["nothing", "nothing"]  # another host has memory of its own


def test_processes_that_cannot_be_divided(found: list[dict[str, Any]]) -> None:
    if len(found) != 4:
        pytest.skip("tried with four")
    for own in found:
        too_many, alone = own["divided"]
        assert "shard=4: a host has 2 processes" in too_many
        assert "a host has 1 process" in alone
