"""Rows that learn over two GPUs with NCCL train as one GPU does with all rows."""

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
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "engram"
    return make_bundle(path, make_spec(make_layout(small_vocab)))


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, small_vocab: CompressedVocab
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("trained") / "out"
    return run_processes(bundle, small_vocab.vocab_size, out, "cuda", (2,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_exchange(case: str, dtype: torch.dtype, found: dict[str, Any]) -> None:
    ranks = found["worlds"][2]["exchange"][case, dtype]
    check_exchange(ranks, case, dtype)
    assert all(own["waits"] == [1, 0] for own in ranks), "the host waits for the counts alone"


@pytest.mark.parametrize("way", WAYS)
def test_two_gpus_train_as_one_does(
    way: str, found: dict[str, Any], bundle: Path, small_vocab: CompressedVocab
) -> None:
    alone = Run(way, bundle, small_vocab.vocab_size, None, "cuda")
    losses = alone.steps(0, 2 * STEPS)
    together = found["worlds"][2]["losses"][way]
    last = Run(way, bundle, small_vocab.vocab_size, None, "cuda")
    one = last.resume(f"{found['out']}.2.{way}").steps(STEPS, STEPS)
    assert [*together, *one] == pytest.approx(losses, abs=1e-5)
    for mine, whole in zip(row_parameters(last.model), row_parameters(alone.model), strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-4, rtol=1e-4)
