"""For loops of one's own: the callback, the collator, the optimiser, and the summary."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    cache_in,
    llama,
    make_bundle,
    make_layout,
    make_spec,
    text,
    wake,
    with_cache,
)
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from engram_cli import EngramCallback, EngramCollator
from engram_cli.errors import RuntimeAttachError, TokenIdError
from engram_cli.runtime import (
    RowwiseAdagrad,
    RowwiseAdam,
    attach,
    deactivate,
    parameters_summary,
    row_parameters,
)
from engram_cli.training.optimiser import ChainedOptimiser, make_optimiser
from engram_cli.vocab.compress import CompressedVocab

IDS = text(60, 16, 12)


def model_of(vocab: CompressedVocab, bundle: Path, **options: Any) -> LlamaForCausalLM:
    model = llama(vocab.vocab_size)
    model.requires_grad_(False)
    wake(attach(model, bundle, **{"sparse_gradients": True, **options}))
    return model


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        logging_steps=2,
        save_steps=3,
        max_grad_norm=0.05,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )


LINES = [{"input_ids": ids, "labels": ids} for ids in IDS]


def own_trainer(model: nn.Module, folder: Path, callback: EngramCallback) -> Trainer:
    optimiser = make_optimiser(model, rows_lr=0.05, lr=0.01)
    return Trainer(
        model,
        arguments(folder),
        train_dataset=LINES,
        optimizers=(optimiser, None),
        callbacks=[callback],
    )


def test_a_trainer_resumes_from_the_bundles_of_the_callback(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = model_of(small_vocab, bundle)
    trainer = own_trainer(model, tmp_path, EngramCallback(saves=True))
    trainer.train()
    assert (tmp_path / "checkpoint-3" / "engram" / "engram.json").is_file()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for place in (1, 2):
        gates = [entry[f"engram/gate_{place}"] for entry in logs]
        touched = [entry[f"engram/touched_{place}"] for entry in logs]
        assert all(0 < gate < 1 for gate in gates)
        assert 0 < touched[0] <= touched[1] <= touched[2] <= 1
        assert all(entry[f"engram/row_norm_{place}"] > 0 for entry in logs)
    resumed = model_of(small_vocab, bundle)
    # What transformers saves of the memory is not needed.
    again = own_trainer(resumed, tmp_path, EngramCallback())
    again._load_from_checkpoint = lambda *given: None
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert not resumed.engram.layers["1"]._forward_hooks


def test_the_callbacks_figures_are_those_of_the_model(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = model_of(small_vocab, bundle, sparse_gradients=False)
    callback = EngramCallback(saves=False)
    trainer = own_trainer(model, tmp_path, callback)
    start = [rows.detach().clone() for rows in row_parameters(model)]
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for place, rows, before in zip((1, 2), row_parameters(model), start, strict=True):
        changed = (rows != before).any(dim=1).float().mean().item()
        # Of dense gradients only the logged steps are looked at.
        assert 0 < logs[-1][f"engram/touched_{place}"] <= changed + 1e-6


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_rows_of_the_collator_are_those_that_the_model_hashes(
    packed: bool, padded: bool, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    spec = make_spec(make_layout(small_vocab), packed=packed)
    model = model_of(small_vocab, make_bundle(tmp_path / "engram", spec))
    lines: list[dict[str, Any]] = []
    for number, ids in enumerate(IDS[:4]):
        line = {"input_ids": ids, "labels": ids}
        if padded:
            line["attention_mask"] = (torch.arange(12) >= number).long()
        if packed:
            line["position_ids"] = torch.arange(12) % (5 + number)
        lines.append(line)
    collator = EngramCollator(model.engram)
    loader = DataLoader(lines, batch_size=4, collate_fn=pickle.loads(pickle.dumps(collator)))
    batch = next(iter(loader))
    rows = batch["engram_rows"]
    assert rows.shape == (4, 2, 12, 4)
    assert rows.dtype == torch.int32
    plain = {name: value for name, value in batch.items() if name != "engram_rows"}
    expected, found = model(**plain), model(**batch)
    assert torch.equal(found.logits, expected.logits)
    other = {**batch, "engram_rows": rows.flip(0)}
    assert not torch.equal(model(**other).logits, expected.logits)  # they are what is used
    found.loss.backward()
    assert all(rows.grad is not None for rows in row_parameters(model))
    deactivate(model)
    assert torch.equal(model(**batch).logits, model(**plain).logits)


def test_rows_that_do_not_fit_are_refused(small_vocab: CompressedVocab, bundle: Path) -> None:
    model = model_of(small_vocab, bundle)
    collator = EngramCollator(model.engram)
    batch = collator(LINES[:2])
    with pytest.raises(RuntimeAttachError, match="rows of shape"):
        model(batch["input_ids"], engram_rows=batch["engram_rows"][:, :1])
    cache = with_cache(cache_in(model(batch["input_ids"], use_cache=True)))
    with pytest.raises(RuntimeAttachError, match="continues a cache"):
        model(batch["input_ids"], engram_rows=batch["engram_rows"], **cache)
    with pytest.raises(TokenIdError):
        collator([{"input_ids": torch.tensor([10**6])}])


def test_the_optimiser_is_what_its_parts_are(small_vocab: CompressedVocab, bundle: Path) -> None:
    model = model_of(small_vocab, bundle)
    twin = copy.deepcopy(model)
    optimiser = make_optimiser(model, rows_lr=0.05, lr=0.01)
    assert isinstance(optimiser, ChainedOptimiser)
    rows = row_parameters(twin)
    known = {id(parameter) for parameter in rows}
    rest = [p for p in twin.parameters() if p.requires_grad and id(p) not in known]
    apart = [
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0),
        RowwiseAdam(rows, lr=0.05, betas=(0.9, 0.95)),
    ]
    for step in range(4):
        ids = IDS[4 * step : 4 * step + 4]
        for own, steps in ((model, [optimiser]), (twin, apart)):
            own(ids, labels=ids).loss.backward()
            for each in steps:
                each.step()
                each.zero_grad()
        if step == 1:  # as a Trainer that resumes
            state = copy.deepcopy(optimiser.state_dict())
            optimiser = make_optimiser(model, rows_lr=9.0, lr=9.0)
            optimiser.load_state_dict(state)
    assert [group["name"] for group in optimiser.param_groups] == ["gates", "rows"]
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_rates_of_all_parts_follow_a_scheduler(small_vocab: CompressedVocab, bundle: Path) -> None:
    model = model_of(small_vocab, bundle)
    optimiser = make_optimiser(model, rows_lr=0.5, lr=0.25, rows="adagrad")
    assert isinstance(optimiser.optimisers[1], RowwiseAdagrad)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0 / (step + 1))
    model(IDS, labels=IDS).loss.backward()
    optimiser.step()
    scheduler.step()
    rates = [group["lr"] for each in optimiser.optimisers for group in each.param_groups]
    assert rates == [0.125, 0.25]


def test_a_trainer_clips_sparse_rows_as_dense_ones(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    norms = []
    for sparse in (True, False):
        model = model_of(small_vocab, bundle, sparse_gradients=sparse)
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
        trainer = Trainer(
            model,
            arguments(tmp_path / str(sparse), gradient_accumulation_steps=2),
            train_dataset=LINES,
            optimizers=(torch.optim.SGD(groups, lr=1.0), None),
        )
        trainer.train()
        norms.append([entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry])
        trained = [parameter.detach().clone() for parameter in model.parameters()]
        if sparse:
            first = trained
    assert min(norms[0]) > 0.05  # so that something was clipped
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    for one, other in zip(first, trained, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_summary_counts_every_part(small_vocab: CompressedVocab, bundle: Path) -> None:
    model = model_of(small_vocab, bundle)
    found = {part.name: part for part in parameters_summary(model).parts}
    rows = sum(weight.numel() for weight in row_parameters(model))
    assert found["rows"].total == found["rows"].trainable == rows
    assert found["backbone"].trainable == 0
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert sum(part.total for part in found.values()) == everything
    assert set(found) == {"rows", "gates", "backbone"}
    lines = str(parameters_summary(model)).splitlines()
    assert len(lines) == 4
    assert f"{rows:,}" in lines[1]
