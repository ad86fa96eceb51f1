"""train --placement shard: processes with a part of the rows each train as one with all rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resumed_training import OPTIONS

from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.train.command import train
from engram_cli.errors import InputError
from engram_cli.formats.bundle import read_bundle

SCRIPT = Path(__file__).parents[1] / "resumed_training.py"
STAGES = ("1:hbm:3", "2:shard:5", "3:shard:0")


def test_a_run_resumed_on_two_and_three_processes_ends_as_one_process_does(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    alone = train(
        TrainRequest(
            checkpoint=checkpoint,
            sources=(texts[0],),
            held_out=(texts[1],),
            out=tmp_path / "alone",
            bundle=bundle,
            **OPTIONS,
        )
    )
    out = tmp_path / "run"
    given = [str(path) for path in (checkpoint, *texts, bundle, out)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *given, *STAGES],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = json.loads((out / "engram-train.json").read_text())["result"]["lines"]
    assert alone.outcome is not None
    for line, other in zip(alone.outcome.lines, lines, strict=True):
        assert other["loss"] == pytest.approx(line.loss, abs=2e-5)
    course = alone.outcome.lines[1].course
    assert course is not None
    losses = [each["loss"] for each in lines[1]["course"]["evaluations"]]
    # The Trainer fills up the last batches of its sample, which is not divided evenly.
    assert losses == pytest.approx([each.loss for each in course.evaluations], abs=0.02)
    assert losses[-1] < losses[0] - 0.01
    one, other = read_bundle(alone.out / "engram"), read_bundle(out / "engram", verify=True)
    start = read_bundle(bundle)
    for layer in one.spec.layers:
        mine, theirs, before = (
            np.concatenate([np.array(part) for part in found.maps(layer, "rows")])
            for found in (one, other, start)
        )
        np.testing.assert_allclose(theirs, mine, atol=1e-3)
        assert not np.array_equal(mine, before)


def test_refusals(checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path) -> None:
    request = {
        "checkpoint": checkpoint,
        "sources": (texts[0],),
        "held_out": (texts[1],),
        "bundle": bundle,
        "out": tmp_path / "run",
        "placement": "shard",
        "device": "cpu",
    }
    with pytest.raises(InputError, match="over processes, and there is one"):
        train(TrainRequest(**request))
    with pytest.raises(InputError, match="--placement shard with --rows frozen"):
        train(TrainRequest(**request, rows="frozen"))
    assert not (tmp_path / "run").exists()
