"""train and evaluate on a GPU: what learns, in bfloat16, and the losses that a CPU finds too."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tokenizers import PROSE
from tiny_models import llama, make_bundle, make_layout, make_spec
from transformers import PreTrainedTokenizerFast

from engram_cli.commands.evaluate.command import evaluate
from engram_cli.commands.requests.evaluation import EvaluateRequest
from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.train.command import train
from engram_cli.vocab.compress import CompressedVocab

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Of gradient checkpointing under PEFT.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab, tokenizer_file: Path
) -> Path:
    """A checkpoint, a bundle for it, and two texts."""
    folder = tmp_path_factory.mktemp("run")
    llama(small_vocab.vocab_size).save_pretrained(folder / "ckpt")
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file)).save_pretrained(folder / "ckpt")
    make_bundle(folder / "bundle", make_spec(make_layout(small_vocab)))
    draw = random.Random(0)
    for name, numbers in (("train", range(60)), ("held-out", range(60, 72))):
        lines = [
            json.dumps({"text": f"{' '.join(draw.choices(PROSE[:2], k=3))} {number}"})
            for number in numbers
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"rows": "frozen"}, {"gradient_checkpointing": True, "lora": 2}, {"full": True}],
    ids=["memory", "frozen rows", "LoRA, activations again", "full"],
)
def test_the_loss_falls(options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    request = TrainRequest(
        checkpoint=folder / "ckpt",
        sources=(folder / "train.jsonl",),
        held_out=(folder / "held-out.jsonl",),
        out=tmp_path / "run",
        bundle=folder / "bundle",
        steps=20,
        batch=8,
        micro_batch=4,
        length=16,
        **options,
    )
    outcome = train(request).outcome
    assert outcome is not None
    line = outcome.lines[-1]
    assert line.low is not None
    assert line.high is not None
    assert line.low < line.difference < line.high < 0  # type: ignore[operator]
    model = folder / "ckpt" if "full" not in options else tmp_path / "run" / "model"
    on_gpu, on_cpu = (
        evaluate(
            EvaluateRequest(
                checkpoint=model,
                sources=(folder / "held-out.jsonl",),
                bundle=tmp_path / "run",
                lora=tmp_path / "run" / "lora" if "lora" in options else None,
                dtype="float32",
                device=device,
            )
        )
        for device in ("cuda", "cpu")
    )
    for one, other in zip(on_gpu.losses, on_cpu.losses, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=2e-4), one.variant
