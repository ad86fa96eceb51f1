"""--verify: commands that load a bundle compare its rows with their digests first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engram_cli.commands.evaluate.command import evaluate
from engram_cli.commands.patch_make.command import make_patch_of_facts
from engram_cli.commands.requests.evaluation import EvaluateRequest
from engram_cli.commands.requests.patch_make import PatchMakeRequest
from engram_cli.commands.requests.reading import TraceRequest
from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.trace import trace_text
from engram_cli.commands.train.command import train
from engram_cli.errors import ArtifactError, InputError

Run = Callable[..., Any]


def _evaluate(folder: Path, texts: tuple[Path, Path], **options: Any) -> Any:
    return evaluate(EvaluateRequest(sources=(texts[1],), device="cpu", **options))


def _train(folder: Path, texts: tuple[Path, Path], **options: Any) -> Any:
    out = folder / "run"
    return train(
        TrainRequest(sources=(texts[0],), held_out=(texts[1],), out=out, device="cpu", **options)
    )


def _trace(folder: Path, texts: tuple[Path, Path], **options: Any) -> Any:
    return trace_text(TraceRequest(text="The river", device="cpu", **options))


def _patch_make(folder: Path, texts: tuple[Path, Path], **options: Any) -> Any:
    edits = folder / "facts.jsonl"
    edits.write_text('{"prompt": "The river", "target": " is deep"}\n')
    request = PatchMakeRequest(edits=edits, out=folder / "p", device="cpu", **options)
    return make_patch_of_facts(request)


@pytest.fixture
def damaged(bundle: Path, tmp_path: Path) -> tuple[Path, str]:
    """A copy of a bundle with a flipped bit in its rows, and the name of the file."""
    copy = shutil.copytree(bundle, tmp_path / "engram")
    shard = min(copy.glob("rows-*.safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[-5] ^= 1
    shard.write_bytes(raw)
    return copy, shard.name


@pytest.mark.parametrize("run", [_evaluate, _train, _trace, _patch_make])
def test_a_flipped_bit_in_the_rows_is_found(
    run: Run,
    checkpoint: Path,
    texts: tuple[Path, Path],
    damaged: tuple[Path, str],
    tmp_path: Path,
) -> None:
    bundle, shard = damaged
    with pytest.raises(ArtifactError, match=shard):
        run(tmp_path, texts, checkpoint=checkpoint, bundle=bundle, verify=True)
    assert not (tmp_path / "p").exists()


def test_without_it_rows_are_not_read_first(
    checkpoint: Path, texts: tuple[Path, Path], damaged: tuple[Path, str], tmp_path: Path
) -> None:
    assert _trace(tmp_path, texts, checkpoint=checkpoint, bundle=damaged[0]).layers


@pytest.mark.parametrize("run", [_evaluate, _train])
def test_without_a_bundle_there_is_nothing_to_verify(
    run: Run, checkpoint: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--verify without"):
        run(tmp_path, texts, checkpoint=checkpoint, verify=True)
