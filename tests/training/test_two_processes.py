"""With torchrun, two processes on half a batch each train as one does on the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.train.command import train
from engram_cli.formats.bundle import read_bundle


def test_two_processes_equal_one(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "engram_cli", "train", str(checkpoint), str(texts[0]), "--out", str(out)]
    command += ["--held-out", str(texts[1]), "--bundle", str(bundle), "--json"]
    command += ["--steps", "6", "--batch", "8", "--micro-batch", "2", "--length", "16"]
    # Differences of rounding grow with the rates.
    command += ["--rows-lr", "0.01", "--lr", "0.01"]
    # Not told to use the CPU: it must find that there is nothing else.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    together = json.loads(done.stdout)["outcome"]  # the first process alone prints
    alone = train(
        TrainRequest(
            checkpoint=checkpoint,
            sources=(texts[0],),
            held_out=(texts[1],),
            out=tmp_path / "one",
            bundle=bundle,
            device="cpu",
            steps=6,
            batch=8,
            length=16,
            rows_lr=0.01,
            lr=0.01,
        )
    ).outcome
    assert alone is not None
    for line, other in zip(alone.lines, together["lines"], strict=True):
        assert other["loss"] == pytest.approx(line.loss, abs=2e-5)
    assert together["lines"][1]["difference"] < -0.01
    course, theirs = alone.lines[1].course, together["lines"][1]["course"]
    assert course is not None
    losses = [each["loss"] for each in theirs["evaluations"]]
    assert losses == pytest.approx([each.loss for each in course.evaluations], abs=2e-5)
    one, two = (read_bundle(tmp_path / name / "engram") for name in ("one", "two"))
    for layer in one.spec.layers:
        for name, value in one.dense[layer].items():
            np.testing.assert_allclose(two.dense[layer][name], value, atol=1e-3, err_msg=name)
        for mine, other in zip(one.maps(layer, "rows"), two.maps(layer, "rows"), strict=True):
            np.testing.assert_allclose(np.array(other), np.array(mine), atol=1e-3)
