"""Two processes train as one does: DDP and FSDP2, dense and sparse gradients for the rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime.two_processes import WAYS, train
from transformers import LlamaForCausalLM

from engram_cli.runtime import attach
from engram_cli.vocab.compress import CompressedVocab

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def together(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, small_vocab: CompressedVocab
) -> Any:
    """What two processes end with, by way."""
    out = tmp_path_factory.mktemp("two") / "out.pt"
    command = [sys.executable, str(SCRIPT), str(bundle), str(small_vocab.vocab_size), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {**torch.load(out), "out": out}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one(
    way: str, together: Any, bundle: Path, small_vocab: CompressedVocab
) -> None:
    alone = train(way, str(bundle), small_vocab.vocab_size, None)
    found = together[way]
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert len({round(loss, 4) for loss in found["losses"]}) == 3
    assert set(found["weights"]) == set(alone["weights"])
    for name, value in alone["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_what_two_processes_save_is_what_they_trained(way: str, together: Any) -> None:
    folder = Path(f"{together['out']}.{way}")
    model = LlamaForCausalLM.from_pretrained(folder)
    attach(model, folder)
    for name, value in together[way]["weights"].items():
        assert torch.equal(model.state_dict()[name], value), name
