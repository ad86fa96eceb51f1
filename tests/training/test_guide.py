"""The guide docs/guides/train.md: its Python runs, and what it says of a run's folder is so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.train.command import train

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "train.md"


def test_a_loop_of_ones_own(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint, tmp_path / "ckpt")
    shutil.copytree(bundle, tmp_path / "ckpt" / "engram")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (code,) = [block for block in blocks if "EngramCallback" in block]
    names: dict[str, Any] = {}
    exec(compile(code, str(GUIDE), "exec"), names)
    logs = names["trainer"].state.log_history
    named = set(re.findall(r"`(engram/\w+?)_L`", GUIDE.read_text()))
    assert named == {name.rpartition("_")[0] for name in logs[0] if name.startswith("engram/")}
    assert (tmp_path / "run" / "checkpoint-4" / "engram" / "engram.json").is_file()


def test_the_folder_of_a_run_is_as_drawn(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    _, drawn = GUIDE.read_text().split("```\nengram-run/\n")
    named = set(re.findall(r"^  ([\w.-]+)/?  ", drawn.partition("```")[0], flags=re.MULTILINE))
    written = set()
    for name, options in (("a", {"lora": 2, "against_lora": 2}), ("b", {"full": True})):
        out = tmp_path / name
        train(
            TrainRequest(
                checkpoint=checkpoint,
                sources=(texts[0],),
                held_out=(texts[1],),
                out=out,
                bundle=bundle,
                steps=1,
                length=16,
                device="cpu",
                **options,
            )
        )
        written |= {path.name for path in out.iterdir()}
    assert written == named
