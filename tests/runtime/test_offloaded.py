"""A memory whose weights accelerate offloads, or that torch quantises, after it was attached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import MODULES, llama, logits, make_bundle, parameters, spec_of, text, wake
from torch import Tensor, nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import attach, load, row_parameters, save_engram, trace
from engram_cli.runtime.modules.base import MANY_TOKENS
from engram_cli.vocab.compress import CompressedVocab

CPU = torch.device("cpu")
FEW, MANY = text(200, 2, 10), text(200, 4, MANY_TOKENS // 4)  # tokens of one product, and not


def offloaded(model: nn.Module, how: str, folder: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    names = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    if how == "cpu_offload":
        accelerate.cpu_offload(model, execution_device=CPU, offload_buffers=True)
    elif how == "disk_offload":
        accelerate.disk_offload(model, str(folder), execution_device=CPU)
    else:
        places = {**dict.fromkeys(names, "cpu"), "model.layers": "disk", "engram": "disk"}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload", "dispatch_model"])
def test_an_offloaded_memory_computes_the_same(
    how: str, kind: str, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    wake(attach(model, make_bundle(tmp_path / "engram", spec_of(small_vocab, kind))))
    expected = [logits(model, ids) for ids in (FEW, MANY)]
    offloaded(model, how, tmp_path / "offloaded")
    assert all(rows.is_meta for rows in row_parameters(model))
    for ids, before in zip((FEW, MANY), expected, strict=True):
        assert torch.equal(logits(model, ids), before)


def test_offloaded_weights_are_saved_and_not_loaded(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = llama(small_vocab.vocab_size)
    memory = attach(model, bundle)
    wake(memory)
    weights = parameters(memory)
    gates = trace(model, FEW[0]).gates
    offloaded(model, "cpu_offload", tmp_path)
    assert all(torch.equal(g, gates[layer]) for layer, g in trace(model, FEW[0]).gates.items())
    with pytest.raises(RuntimeAttachError, match="is offloaded") as caught:
        load(model, bundle)
    assert "remove_hook_from_submodules" in caught.value.hint
    for folder in ("offloaded", "whole"):
        save_engram(model, tmp_path / folder)
        again = llama(small_vocab.vocab_size)
        for name, value in parameters(attach(again, tmp_path / folder)).items():
            assert torch.equal(value, weights[name])
        hooks.remove_hook_from_submodules(model)


def dynamic(model: nn.Module) -> nn.Module:
    quantised: nn.Module = torch.ao.quantization.quantize_dynamic(
        model, {nn.Linear}, dtype=torch.qint8, inplace=True
    )
    return quantised


def int8(model: nn.Module) -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


# torch's quantised layers are deprecated in favour of torchao's.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("quantise", [dynamic, int8])
def test_a_memory_with_quantised_projections_runs(
    quantise: Callable[[nn.Module], nn.Module],
    kind: str,
    small_vocab: CompressedVocab,
    tmp_path: Path,
) -> None:
    model = llama(small_vocab.vocab_size)
    memory = attach(model, make_bundle(tmp_path / "engram", spec_of(small_vocab, kind)))
    wake(memory)

    def added(layer: nn.Module, batch: int, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        hidden = torch.randn(batch, length, 32, generator=generator)
        rows = torch.randint(97, (batch, length, 4), generator=generator)
        with torch.no_grad():
            return layer(hidden, rows)[0]

    for layer in memory.layers.values():
        shapes = [(1, 20), (1, MANY_TOKENS)]
        expected = [added(layer, *shape) for shape in shapes]
        quantise(layer)
        for shape, before in zip(shapes, expected, strict=True):
            error = added(layer, *shape) - before
            assert 0 < error.norm() < 0.05 * before.norm()
    assert logits(model, MANY).isfinite().all()
    with pytest.raises(RuntimeAttachError, match="was quantised"):
        save_engram(model, tmp_path / "saved")
