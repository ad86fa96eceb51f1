"""train: the loss falls, the files hold what learned, and a run that was cut is resumed exactly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_models import text
from transformers import AutoModelForCausalLM, TrainerCallback

from engram_cli.commands.evaluate.command import evaluate
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.evaluation import EvaluateRequest
from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.train.command import TrainResult, train
from engram_cli.errors import CorpusError, EngramError, InputError, MismatchError, OutputError
from engram_cli.formats.bundle import read_bundle
from engram_cli.progress import Silent
from engram_cli.runtime import attach
from engram_cli.training import part
from engram_cli.training import run as runs


def request_for(
    checkpoint: Path, texts: tuple[Path, Path], out: Path, **options: Any
) -> TrainRequest:
    options = {"steps": 12, "batch": 4, "length": 16, "device": "cpu", **options}
    return TrainRequest(
        checkpoint=checkpoint, sources=(texts[0],), held_out=(texts[1],), out=out, **options
    )


def weights(folder: Path) -> dict[str, Any]:
    """All weights of a bundle by name."""
    bundle = read_bundle(folder)
    found: dict[str, Any] = {}
    for layer in bundle.spec.layers:
        found |= {f"{layer} {name}": value for name, value in bundle.dense[layer].items()}
        found[f"{layer} rows"] = np.concatenate([np.array(m) for m in bundle.maps(layer, "rows")])
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def after(result: TrainResult) -> Any:
    assert result.outcome is not None
    return result.outcome.lines[-1]


def test_the_loss_falls_and_the_bundle_is_what_was_measured(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    result = train(request_for(checkpoint, texts, tmp_path / "run", bundle=bundle, steps=30))
    assert result.outcome is not None
    alone, trained = result.outcome.lines
    assert alone.name == "model alone"
    assert trained.loss < alone.loss - 0.5
    assert trained.difference == pytest.approx(trained.loss - alone.loss, abs=1e-6)
    assert trained.low < trained.difference < trained.high < 0
    evaluations = trained.course.evaluations
    assert evaluations[-1].step == 30
    assert evaluations[-1].loss < evaluations[0].loss
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = text(60, 2, 16)
    bare = model(ids).logits
    attach(model, tmp_path / "run")
    assert not torch.equal(model(ids).logits, bare)
    start, end = weights(bundle), weights(tmp_path / "run" / "engram")
    assert all(not np.array_equal(start[name], end[name]) for name in start)


def test_frozen_rows_stay_as_they_are(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    result = train(request_for(checkpoint, texts, tmp_path / "run", bundle=bundle, rows="frozen"))
    start, end = weights(bundle), weights(tmp_path / "run" / "engram")
    changed = {name for name in start if not np.array_equal(start[name], end[name])}
    assert changed == {name for name in start if not name.endswith("rows")}
    assert after(result).difference < 0


def test_rows_that_no_text_can_fill_start_random_at_the_embedding(
    checkpoint: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    geometry = Geometry(scheme="longcat", eos_id=1)
    request = request_for(checkpoint, texts, tmp_path / "run", geometry=geometry, steps=6)
    with pytest.raises(InputError, match="rows of longcat start random"):
        train(replace(request, out=tmp_path / "frozen", rows="frozen"))
    result = train(request)
    spec = read_bundle(tmp_path / "run" / "engram").spec
    assert (spec.layout.scheme, spec.layers) == ("longcat", (0,))
    assert after(result).difference < 0


class Killed(Exception):
    pass


class Killer(TrainerCallback):
    """Ends a run as kill -9 would: at a step, or while a checkpoint is written."""

    def __init__(self, step: int, at_save: bool) -> None:
        self.step, self.at_save = step, at_save

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not self.at_save and state.global_step == self.step:
            raise Killed

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.at_save and state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("at_save", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"lora": 2}, {"full": True}], ids=["memory", "lora", "full"]
)
def test_a_run_that_was_cut_ends_as_one_that_was_not(
    options: dict[str, Any],
    at_save: bool,
    checkpoint: Path,
    texts: tuple[Path, Path],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = request_for(
        checkpoint, texts, tmp_path / "whole", bundle=bundle, micro_batch=2, **options
    )
    train(whole)
    cut = replace(whole, out=tmp_path / "cut")
    made = runs.make_trainer

    def killed(*args: Any) -> Any:
        trainer = made(*args)
        trainer.callback_handler.callbacks.insert(0, Killer(6 if at_save else 8, at_save))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr("engram_cli.training.part.make_trainer", killed)
        with pytest.raises(Killed):
            train(cut)
    assert not (tmp_path / "cut" / "engram").exists()
    result = train(cut)
    assert after(result).course.steps == 12
    assert_same(weights(tmp_path / "whole" / "engram"), weights(tmp_path / "cut" / "engram"))
    for name in ("lora/adapter_model.safetensors", "model/model.safetensors"):
        if (tmp_path / "whole" / name).exists():
            one, other = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
            assert_same(one, other)
    again = train(cut)  # nothing is left to do
    assert again.outcome == result.outcome


@pytest.mark.parametrize("options", [{}, {"full": True}], ids=["memory", "full"])
def test_what_was_trained_is_there_before_it_is_measured(
    options: dict[str, Any],
    checkpoint: Path,
    texts: tuple[Path, Path],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = request_for(checkpoint, texts, tmp_path / "whole", bundle=bundle, **options)
    expected = train(whole)
    cut = replace(whole, out=tmp_path / "cut")
    measured: list[str] = []
    losses = part.PartRun._losses

    def killed(own: Any, name: str, variants: Any) -> Any:
        measured.append(name)
        if len(measured) == 1 + len(options):
            raise Killed
        return losses(own, name, variants)

    monkeypatch.setattr(part.PartRun, "_losses", killed)
    with pytest.raises(Killed):
        train(cut)
    assert_same(weights(tmp_path / "whole" / "engram"), weights(tmp_path / "cut" / "engram"))
    lines = train(cut).outcome.lines  # type: ignore[union-attr]
    assert measured == ["before"] * len(options) + ["after", "after"]
    assert expected.outcome is not None
    for line, other in zip(lines, expected.outcome.lines, strict=True):
        assert (line.loss, line.low, line.high) == (other.loss, other.low, other.high)
    assert_same(weights(tmp_path / "whole" / "engram"), weights(tmp_path / "cut" / "engram"))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_lora_is_trained_with_the_memory_and_against_it(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    request = request_for(
        checkpoint, texts, tmp_path / "run", bundle=bundle, lora=2, against_lora=4
    )
    result = train(request)
    assert result.outcome is not None
    names = [line.name for line in result.outcome.lines]
    assert names == ["model alone", "memory and LoRA", "LoRA alone"]
    assert [line.course.steps for line in result.outcome.lines[1:]] == [12, 12]
    assert all(line.difference < 0 for line in result.outcome.lines[1:])
    for folder, rank in (("lora", 2), ("lora-alone", 4)):
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        adapted = PeftModel.from_pretrained(model, tmp_path / "run" / folder)
        assert adapted.peft_config["default"].r == rank
        names = load_file(tmp_path / "run" / folder / "adapter_model.safetensors")
        assert not any("engram" in name for name in names)


def test_the_whole_model_is_written_without_the_memory(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    result = train(request_for(checkpoint, texts, tmp_path / "run", bundle=bundle, full=True))
    assert result.outcome is not None
    line = after(result)
    assert line.name == "memory and model"
    assert line.low < line.difference < line.high
    assert line.difference == pytest.approx(line.loss - result.outcome.lines[0].loss, abs=1e-6)
    assert (tmp_path / "run" / "model" / "tokenizer.json").read_bytes() == (
        checkpoint / "tokenizer.json"
    ).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    names = set(load_file(tmp_path / "run" / "model" / "model.safetensors"))
    assert not any("engram" in name for name in names)
    attach(model, tmp_path / "run")
    start = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not torch.equal(model.lm_head.weight, start.lm_head.weight)


def test_a_dry_run_measures_and_writes_nothing(
    checkpoint: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    request = request_for(checkpoint, texts, tmp_path / "run", dry_run=True, minutes=1, steps=None)
    result = train(request)
    assert not (tmp_path / "run").exists()
    assert result.cost is not None
    assert result.steps == round(60 / result.cost.seconds)
    assert result.memory_bytes is not None
    assert result.memory_bytes > 10**6


def test_measuring_a_step_changes_nothing(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    """As --minutes does before it trains."""
    plain = request_for(checkpoint, texts, tmp_path / "plain", bundle=bundle, steps=4)
    train(plain)
    measured = request_for(
        checkpoint, texts, tmp_path / "measured", bundle=bundle, steps=None, minutes=1e-9
    )
    result = train(measured)
    assert result.steps == 1
    one = train(replace(plain, out=tmp_path / "one", steps=1))
    assert_same(weights(tmp_path / "one" / "engram"), weights(tmp_path / "measured" / "engram"))
    assert after(one).loss == after(result).loss


def test_it_stops_when_the_loss_falls_no_more(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    request = request_for(
        checkpoint, texts, tmp_path / "run", bundle=bundle, rows_lr=0.0, lr=0.0, patience=1
    )
    course = after(train(replace(request, steps=20))).course
    assert course.early
    assert (course.best, course.steps) == (4, 8)
    losses = {each.step: each.loss for each in course.evaluations}
    assert losses[course.best] == min(losses.values())


def test_what_cannot_be_is_said_in_one_line(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    request = request_for(checkpoint, texts, tmp_path / "run", bundle=bundle, steps=2)
    train(request)
    cases: list[tuple[type[EngramError], str, dict[str, Any]]] = [
        (OutputError, "is a finished run with another --steps", {"steps": 3}),
        (OutputError, "another --steps", {"steps": 3, "dry_run": True}),
        (OutputError, "another training text", {"sources": (texts[1],), "held_out": (texts[0],)}),
        (OutputError, "not made by engram train", {"out": checkpoint, "dry_run": True}),
        (OutputError, "not made by engram train", {"out": checkpoint}),
        (InputError, "do not fill a window", {"length": 4096, "out": tmp_path / "a"}),
        (InputError, "--micro-batch 3", {"micro_batch": 3, "out": tmp_path / "b"}),
        (InputError, "no checkpoint at", {"checkpoint": tmp_path / "none"}),
        (InputError, "both --full and --lora", {"full": True, "lora": 2}),
        (InputError, "both --steps and --minutes", {"minutes": 2}),
        (InputError, "--bundle with options", {"dim": 8}),
        (InputError, "below 0", {"lr": -1.0}),
    ]
    for kind, message, change in cases:
        with pytest.raises(kind, match=message):
            train(replace(request, **change))
    with pytest.raises(CorpusError, match=r"missing\.txt"):
        train(replace(request, sources=(tmp_path / "missing.txt",), out=tmp_path / "c"))


@pytest.mark.parametrize("way", ["FSDP", "DeepSpeed"])
def test_a_divided_model_is_refused(
    way: str,
    checkpoint: Path,
    texts: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `accelerate launch` says it to its processes."""
    monkeypatch.setenv(f"ACCELERATE_USE_{way.upper()}", "true")
    with pytest.raises(InputError, match=f"{way} divides a model"):
        train(request_for(checkpoint, texts, tmp_path / "run"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=f"{way} divides a model"):
        evaluate(EvaluateRequest(checkpoint=checkpoint, sources=(texts[1],)))


def test_a_text_that_has_changed_is_not_resumed_with(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    own = shutil.copy(texts[0], tmp_path / "own.jsonl")
    request = request_for(checkpoint, (own, texts[1]), tmp_path / "run", bundle=bundle, steps=2)
    train(request)
    mark = tmp_path / "run" / "engram-train.json"
    said = json.loads(mark.read_text())
    mark.write_text(json.dumps({**said, "result": None}))  # as if it had been cut
    own.write_text(own.read_text() + '{"text": "more"}\n', encoding="utf-8")
    with pytest.raises(OutputError, match="changed"):
        train(request)


class SecondRun(Silent):
    """Gives the command again while the first run trains."""

    def __init__(self, request: TrainRequest) -> None:
        self.request, self.refused = request, 0

    def note(self, text: str) -> None:
        if text.startswith("training the memory"):
            with pytest.raises(OutputError, match="run is being built by process"):
                train(self.request)
            self.refused += 1


def test_a_second_run_in_the_same_folder_is_refused(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    request = request_for(checkpoint, texts, tmp_path / "run", bundle=bundle, steps=2)
    second = SecondRun(request)
    first = train(request, second)
    assert second.refused == 1
    assert train(request).outcome == first.outcome
    assert not list((tmp_path / "run").glob("*.lock"))


def test_a_bundle_of_another_tokenizer_is_refused(
    checkpoint: Path, texts: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "ckpt"
    shutil.copytree(checkpoint, other)
    said = json.loads((other / "tokenizer.json").read_text())
    said["added_tokens"] = said["added_tokens"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(MismatchError):
        train(request_for(other, texts, tmp_path / "run", bundle=bundle))
