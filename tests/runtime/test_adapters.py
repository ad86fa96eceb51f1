"""PEFT on the memory itself: copies that are trained in its place, and adapters on its modules."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MODULES, llama, logits, make_bundle, spec_of, text, wake
from torch import nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import (
    attach,
    deactivate,
    detach,
    load,
    memories,
    parameter_groups,
    row_parameters,
    save_engram,
)
from engram_cli.vocab.compress import CompressedVocab

peft = pytest.importorskip("peft")
pytestmark = [
    # peft asks transformers by a name that it has deprecated.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    # Tiny models have no name to look their embeddings up by.
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

PROJECTIONS = r".*engram.*(value_proj|key_projs\.0)"


def wrapped(model: nn.Module, **options: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, **options)).eval()


def trained(model: nn.Module, parameters: list[nn.Parameter], steps: int = 3) -> None:
    ids = text(200, 2, 10)
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(steps):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", MODULES)
def test_modules_to_save_trains_the_memory_as_a_plain_loop_does(
    kind: str, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "engram", spec_of(small_vocab, kind))
    plain, model = (llama(small_vocab.vocab_size) for _ in range(2))
    for each in (plain, model):
        wake(attach(each, bundle))
    plain.requires_grad_(False)
    plain.engram.requires_grad_(True)
    adapted = wrapped(model, target_modules=["q_proj"], modules_to_save=["engram"])
    ids = text(200, 2, 10)
    adapted(ids, labels=ids).loss.backward()
    plain(ids, labels=ids).loss.backward()
    memory = memories(adapted)["engram"]
    mine, theirs = dict(memory.named_parameters()), dict(plain.engram.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in mine.items():
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, theirs[name].grad), name
    reported = [p for p in adapted.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in reported)
    assert {id(p) for p in row_parameters(adapted)} <= {id(p) for p in reported}
    # LoRA begins as no change, so both models still agree after steps on the memory alone.
    trained(adapted, list(memory.parameters()))
    trained(plain, list(plain.engram.parameters()))
    for name, parameter in memory.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    assert torch.equal(logits(adapted, ids), logits(plain, ids))


def test_the_copy_in_force_is_what_every_command_means(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    ids = text(200, 2, 10)
    before = logits(model, ids)
    adapted = wrapped(model, target_modules=["down_proj"], modules_to_save=["engram"])
    memory = memories(adapted)["engram"]
    trained(adapted, list(memory.parameters()))
    after = logits(adapted, ids)
    assert not torch.equal(after, before)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, ids), before)
    copied = copy.deepcopy(adapted)
    assert torch.equal(logits(copied, ids), after)
    assert memories(copied)["engram"] is not memory
    save_engram(adapted, tmp_path / "saved")
    fresh = llama(small_vocab.vocab_size)
    attach(fresh, tmp_path / "saved")
    assert torch.equal(logits(fresh, ids), after)
    deactivate(adapted)
    bare = llama(small_vocab.vocab_size)
    assert torch.equal(logits(adapted, ids), logits(bare, ids))
    detach(adapted)
    assert torch.equal(logits(adapted, ids), logits(bare, ids))
    assert not any(module._forward_pre_hooks for module in adapted.modules())


def test_a_merged_model_keeps_the_trained_copy(small_vocab: CompressedVocab, bundle: Path) -> None:
    model = llama(small_vocab.vocab_size)
    first = attach(model, bundle)
    wake(first)
    ids = text(200, 2, 10)
    adapted = wrapped(model, target_modules=["down_proj"], modules_to_save=["engram"])
    trained(adapted, list(memories(adapted)["engram"].parameters()))
    after = logits(adapted, ids)
    merged = adapted.merge_and_unload()
    assert merged.engram is not first
    assert torch.equal(logits(merged, ids), after)
    detach(merged)
    assert torch.equal(logits(merged, ids), logits(llama(small_vocab.vocab_size), ids))


def test_a_pickled_model_has_its_own_memory(small_vocab: CompressedVocab, bundle: Path) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    ids = text(200, 2, 10)
    assert torch.equal(logits(again, ids), logits(model, ids))
    with torch.no_grad():
        again.engram.layers["1"].value_proj.weight.zero_()
    assert not torch.equal(logits(again, ids), logits(model, ids))


def merge(model: Any) -> None:
    model.merge_adapter()


def switch_off(model: Any) -> None:
    model.base_model.disable_adapter_layers()


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "LoRA": ({"target_modules": PROJECTIONS}, None),
    "DoRA": ({"target_modules": PROJECTIONS, "use_dora": True}, None),
    "rows": ({"target_modules": r".*engram.*embedding\.embedding"}, None),
    "merged in place": ({"target_modules": PROJECTIONS}, merge),
    "switched off": ({"target_modules": PROJECTIONS}, switch_off),
    "a copy": ({"target_modules": ["down_proj"], "modules_to_save": ["value_proj"]}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_saved_is_what_the_model_computes(
    case: str, small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    options, change = CASES[case]
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    ids = text(200, 2, 10)
    before = logits(model, ids)
    random = "modules_to_save" not in options
    adapted = wrapped(model, init_lora_weights=not random, **options)
    if not random:
        trained(adapted, [p for n, p in adapted.named_parameters() if "modules_to_save" in n])
    if change is not None:
        change(adapted)
    expected = logits(adapted, ids)
    assert torch.equal(expected, before) == (case == "switched off")
    state = {name: value.clone() for name, value in adapted.state_dict().items()}
    with pytest.warns(UserWarning, match="adapters in force merged into the weights: .* of layer"):
        save_engram(adapted, tmp_path / "saved")
    for name, value in adapted.state_dict().items():
        assert torch.equal(value, state[name]), f"{name} was changed by saving"
    fresh = llama(small_vocab.vocab_size)
    attach(fresh, tmp_path / "saved")
    torch.testing.assert_close(logits(fresh, ids), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeAttachError, match="has an adapter"):
        load(adapted, tmp_path / "saved")


def test_rows_behind_a_wrapper_are_rows_for_the_optimiser(
    small_vocab: CompressedVocab, bundle: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, bundle))
    adapted = wrapped(model, target_modules=["q_proj"], modules_to_save=["multi_head_embedding"])
    groups = {g["name"]: g["params"] for g in parameter_groups(adapted, lr=1e-3)}
    assert len(groups["rows"]) == 2
    assert all(p.shape[1] == 4 for p in groups["rows"])
    ids = text(200, 2, 10)
    adapted(ids, labels=ids).loss.backward()
    assert all(p.grad.any() for p in groups["rows"])
