"""Bundles on a CUDA device: stored and packed rows beside the CPU's, compiled decode steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lookup_cases import same_bits
from quantised_bundles import QUANTISED, quantised_bundle
from tiny_models import MODULES, llama, logits, make_bundle, spec_of, text, wake, with_cache
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from engram_cli.runtime import attach, detach, load, save_engram
from engram_cli.vocab.compress import CompressedVocab

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.*have no kernel:UserWarning"),
]


def vectors(model: PreTrainedModel, ids: Tensor, **options: Any) -> list[Tensor]:
    """What the layers' modules are given of a forward call, on the CPU."""
    found: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(
            lambda module, args: found.append(module.vectors(args[1]).detach().cpu())
        )
        for module in model.engram.layers.values()
    ]
    logits(model, ids, **options)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [33, 64])
@pytest.mark.parametrize("rows", QUANTISED)
def test_stored_rows_become_the_cpus_numbers_to_the_bit(
    small_vocab: CompressedVocab, tmp_path: Path, rows: str, dim: int, dtype: torch.dtype
) -> None:
    path = quantised_bundle(tmp_path / "engram", small_vocab, rows, dim=dim)
    ids = text(200, 2, 50)
    found = []
    for device in ("cpu", "cuda"):
        model = llama(small_vocab.vocab_size).to(device, dtype)
        attach(model, path)
        found.append(vectors(model, ids.to(device)))
    assert all(map(same_bits, *found))


@pytest.mark.parametrize("rows", ["fp8_e8m0", "int8", "int4", "bfloat16"])
def test_there_and_back(small_vocab: CompressedVocab, tmp_path: Path, rows: str) -> None:
    if rows == "bfloat16":
        spec = spec_of(small_vocab, "engram-v1", dtype=rows)
        path = make_bundle(tmp_path / "engram", spec)
    else:
        path = quantised_bundle(tmp_path / "engram", small_vocab, rows, dim=64)
    model, ids = llama(small_vocab.vocab_size).to(CUDA), text(200, 2, 20).to(CUDA)
    bare = logits(model, ids)
    memory = attach(model, path)
    assert torch.equal(logits(model, ids), bare)
    wake(memory)
    awake = logits(model, ids)
    assert not torch.equal(awake, bare)
    saved = save_engram(model, tmp_path / "saved")
    detach(model)
    assert torch.equal(logits(model, ids), bare)
    attach(model, path)
    load(model, saved, verify=True)
    assert torch.equal(logits(model, ids), awake)


@pytest.mark.parametrize("kind", MODULES)
def test_packed_rows_are_the_cpus(small_vocab: CompressedVocab, tmp_path: Path, kind: str) -> None:
    path = make_bundle(tmp_path / "engram", spec_of(small_vocab, kind, packed=True))
    ids = text(200, 2, 12)
    places = torch.tensor(
        [[0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1, 2], [1, 1, 0, 1, 3, 2, 1, 0, 1, 0, 1, 2]]
    )
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    given, said, made = [], [], []
    for device in ("cpu", "cuda"):
        model = llama(small_vocab.vocab_size).to(device)
        wake(attach(model, path))
        options = {"attention_mask": mask.to(device), "position_ids": places.to(device)}
        given.append(vectors(model, ids.to(device), **options))
        said.append(logits(model, ids.to(device), **options).cpu())
        del options["position_ids"]
        options |= {"max_new_tokens": 6, "do_sample": False}
        made.append(model.generate(ids.to(device), **options).cpu())
    assert all(map(same_bits, *given))
    torch.testing.assert_close(*said, atol=1e-4, rtol=1e-4)
    assert torch.equal(*made)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.filterwarnings("ignore:TensorFloat32:UserWarning")
# torch's own as well: an empty graph holds the pool of memory of all others.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("engram-v1", "default"),
        ("deepseek-v4.1", "reduce-overhead"),
        ("qwen-ple", "reduce-overhead"),
    ],
)
def test_every_decode_step_is_one_compiled_graph(
    small_vocab: CompressedVocab, tmp_path: Path, kind: str, mode: str
) -> None:
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    model = llama(small_vocab.vocab_size, layers=2)
    spec = spec_of(small_vocab, kind, decoder_layers=(0, 1), num_layers=2)
    wake(attach(model, make_bundle(tmp_path / "engram", spec)))
    model = model.to(CUDA)
    ids = text(200, 2, 16).to(CUDA)
    expected = logits(model, ids, use_cache=False)
    compiled: Any = torch.compile(model, fullgraph=True, mode=mode)
    cache = StaticCache(config=model.config, max_cache_len=24)
    for _ in range(2):
        found = [logits(model, ids[:, :6], **with_cache(cache))]
        for place in range(6, 16):
            step = logits(compiled, ids[:, place : place + 1], **with_cache(cache))
            found.append(step.clone())  # the next replay writes over it
        torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-4, rtol=1e-4)
        cache.reset()
    assert counters["stats"]["unique_graphs"] == 1, "a decode step was compiled again"
    assert not counters["graph_break"]
    assert not counters["inductor"]["cudagraph_skips"]
