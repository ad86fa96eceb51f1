"""Rows that learn over several processes train as one GPU does with all rows.

Two processes have a GPU each, with NCCL. Where there is one GPU, two and three share it with gloo:
the same code on the device, and other messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runtime.sharding.trained_processes import (
    CASES,
    DTYPES,
    STEPS,
    WAYS,
    Run,
    check_exchange,
    run_processes,
)
from tiny_models import make_bundle, make_layout, make_spec

from engram_cli.runtime import row_parameters
from engram_cli.vocab.compress import CompressedVocab

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "engram"
    return make_bundle(path, make_spec(make_layout(small_vocab)))


# Where processes run, and how many.
PLACES = pytest.mark.parametrize(
    "place",
    [pytest.param(("cuda", (2,)), marks=TWO), ("cuda:0", (2, 3))],
    ids=["two GPUs", "one GPU"],
    scope="module",
)


@pytest.fixture(scope="module")
def found(
    place: tuple[str, tuple[int, ...]],
    tmp_path_factory: pytest.TempPathFactory,
    bundle: Path,
    small_vocab: CompressedVocab,
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("exchanged") / "out"
    return run_processes(bundle, small_vocab.vocab_size, out, *place, ways=())


@PLACES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_exchange(case: str, dtype: torch.dtype, found: dict[str, Any]) -> None:
    for world in found["worlds"].values():
        check_exchange(world["exchange"][case, dtype], case, dtype)


@PLACES
def test_the_host_waits_for_the_counts_alone(found: dict[str, Any]) -> None:
    for world in found["worlds"].values():
        waits = {key: [own["waits"] for own in ranks] for key, ranks in world["exchange"].items()}
        assert all(own == [1, 0] for ranks in waits.values() for own in ranks), waits


@PLACES
@pytest.mark.parametrize("way", WAYS)
def test_processes_train_as_one_does(
    way: str,
    place: tuple[str, tuple[int, ...]],
    bundle: Path,
    small_vocab: CompressedVocab,
    tmp_path: Path,
) -> None:
    if place[0] == "cuda:0" and "fsdp2" in way:
        pytest.skip("collectives of DTensor on a GPU crash with gloo (torch 2.11)")
    vocab, worlds = small_vocab.vocab_size, place[1]
    found = run_processes(bundle, vocab, tmp_path / "out", *place, ways=(way,))
    together = [loss for world in found["worlds"].values() for loss in world["losses"][way]]
    alone = Run(way, bundle, vocab, None, "cuda")
    losses = alone.steps(0, len(together) + STEPS)
    last = Run(way, bundle, vocab, None, "cuda")
    one = last.resume(f"{found['out']}.{max(worlds)}.{way}").steps(len(together), STEPS)
    assert [*together, *one] == pytest.approx(losses, abs=1e-5)
    for mine, whole in zip(row_parameters(last.model), row_parameters(alone.model), strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-4, rtol=1e-4)
