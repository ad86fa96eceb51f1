"""train and evaluate on a GPU: what learns, in bfloat16, and the losses that a CPU finds too."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
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
from engram_cli.commands.train.command import TrainResult, train
from engram_cli.vocab.compress import CompressedVocab

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Of gradient checkpointing under PEFT.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

# A process that trains, and is killed after a step.
KILLED = """
import os, pickle, signal, sys
from transformers import TrainerCallback
from engram_cli.commands.train.command import train
from engram_cli.training import part

class Killer(TrainerCallback):
    def on_step_end(self, args, state, control, **given):
        if state.global_step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

made = part.make_trainer

def killed(*args):
    trainer = made(*args)
    trainer.callback_handler.callbacks.insert(0, Killer())
    return trainer

part.make_trainer = killed
train(pickle.loads(sys.stdin.buffer.read()))
"""


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


def request_for(folder: Path, out: Path, **options: Any) -> TrainRequest:
    return TrainRequest(
        checkpoint=folder / "ckpt",
        sources=(folder / "train.jsonl",),
        held_out=(folder / "held-out.jsonl",),
        out=out,
        bundle=folder / "bundle",
        steps=20,
        batch=8,
        micro_batch=4,
        length=16,
        **options,
    )


def losses(result: TrainResult) -> tuple[Sequence[float], Sequence[float]]:
    """The losses on the way, and those at the end."""
    assert result.outcome is not None
    course = result.outcome.lines[-1].course
    assert course is not None
    assert course.steps == 20
    on_the_way = [each.loss for each in course.evaluations]
    return on_the_way, [line.loss for line in result.outcome.lines]


@pytest.mark.parametrize(
    "options",
    [{}, {"rows": "frozen"}, {"gradient_checkpointing": True, "lora": 2}, {"full": True}],
    ids=["memory", "frozen rows", "LoRA, activations again", "full"],
)
def test_the_loss_falls(options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    request = request_for(folder, tmp_path / "run", **options)
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


@pytest.mark.parametrize(
    "options", [{}, {"lora": 2}, {"full": True}], ids=["memory", "LoRA", "full"]
)
def test_a_killed_run_ends_as_one_that_was_not(
    options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    whole = request_for(folder, tmp_path / "whole", **options)
    cut = replace(whole, out=tmp_path / "cut")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "13"],
        input=pickle.dumps(cut),
        env=environment,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:].decode()
    assert not (tmp_path / "cut" / "engram").exists()
    for found, expected in zip(losses(train(cut)), losses(train(whole)), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"lora": 2}], ids=["memory", "LoRA"])
def test_activations_computed_again_change_nothing(
    options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    kept = request_for(folder, tmp_path / "kept", **options)
    again = replace(kept, out=tmp_path / "again", gradient_checkpointing=True)
    for found, expected in zip(losses(train(again)), losses(train(kept)), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_bfloat16_is_near_the_cpu(folder: Path) -> None:
    request = EvaluateRequest(
        checkpoint=folder / "ckpt",
        sources=(folder / "held-out.jsonl",),
        bundle=folder / "bundle",
        device="cuda",
    )
    on_gpu, on_cpu = evaluate(request), evaluate(replace(request, device="cpu"))
    for one, other in zip(on_gpu.losses, on_cpu.losses, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=0.02), one.variant
    assert on_gpu.scored == on_cpu.scored
