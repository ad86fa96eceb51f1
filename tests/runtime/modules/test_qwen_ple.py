"""qwen-ple against transformers' own layer and model with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runtime.modules.inputs import Build, some_input
from tiny_models import HIDDEN, LAYERS, make_bundle, spec_of, text, wake, with_cache
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime import attach
from engram_cli.vocab.compress import CompressedVocab

modeling = pytest.importorskip("transformers.models.qwen4_exp.modeling_qwen4_exp")
EOS = 1


@pytest.fixture
def kind() -> str:
    return "qwen-ple"


@pytest.fixture(params=[2, 3])
def streams(request: pytest.FixtureRequest) -> int:
    return request.param  # transformers' model has no single stream


def model(spec: BundleSpec, ple_layers: list[int]) -> PreTrainedModel:
    """Qwen4-Exp with n-gram layers of the spec's geometry; the rest has the same weights always."""
    config = modeling.Qwen4ExpTextConfig(
        vocab_size=spec.layout.vocab_size,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        hc_count=spec.module.streams,
        hc_lowrank=4,
        layer_types=["linear_attention"] * (LAYERS - 1) + ["indexed_attention"],
        rms_norm_eps=spec.module.norm_eps,
        eos_token_id=EOS,
        pad_token_id=2,
        ple_layer_ids=ple_layers,
        ple_embed_dim=spec.embed_dim,
        ngram_size=spec.layout.max_order,
        heads_per_ngram=spec.layout.heads,
        ngram_vocab_size_base=97,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=64,
        indexer_compress_ratio=4,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return modeling.Qwen4ExpForCausalLM(config).eval()


def carry_over(ple: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give transformers' layer the weights of ours."""
    own = {k: v for k, v in weights.items() if not k.startswith("multi_head")}
    found = ple.load_state_dict(own, strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("ple_embedding.") for name in found.missing_keys)
    ple.ple_embedding.ngram_embedding.weight.data.copy_(
        weights["multi_head_embedding.embedding.weight"]
    )


def test_it_is_transformers_layer(spec: BundleSpec, build: Build) -> None:
    theirs = model(spec, list(spec.layers)).model.layers[1].ple
    found = build(spec)
    carry_over(theirs, found.state_dict())
    hidden, _ = some_input(spec)
    ids = text(spec.layout.vocab_size, 2, 14)
    ids[0, 5] = EOS
    looked_up: list[Tensor] = []
    handle = theirs.ple_embedding.ngram_embedding.register_forward_pre_hook(
        lambda module, args: looked_up.append(args[0])
    )
    with torch.no_grad():
        expected = theirs(hidden.flatten(2), ids, None)
        handle.remove()
        out, _ = found(hidden.flatten(2), looked_up[0])
    assert out.abs().max() > 0.1
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def both(spec: BundleSpec, path: Path, **options: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """transformers' model with its own n-gram layers, and the bare one with ours attached."""
    theirs, ours = model(spec, list(spec.layers)), model(spec, [])
    shared = {k: v for k, v in theirs.state_dict().items() if ".ple." not in k}
    ours.load_state_dict(shared)
    memory = attach(ours, make_bundle(path / "engram", spec), **options)
    wake(memory)
    for layer in spec.layers:
        module = memory.layers[str(layer)]
        carry_over(theirs.model.layers[spec.index(layer)].ple, module.state_dict())
    return theirs, ours


def test_the_whole_model_in_prefill_and_decode(spec: BundleSpec, tmp_path: Path) -> None:
    theirs, ours = both(spec, tmp_path)
    ids = text(spec.layout.vocab_size, 2, 12)
    ids[1, 4] = ids[0, 9] = EOS
    with torch.no_grad():
        expected = theirs(ids, use_cache=False).logits
        found = ours(ids, use_cache=False).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        caches = DynamicCache(config=theirs.config), DynamicCache(config=ours.config)
        for piece in ids.split([5, 1, 1, 1, 1, 1, 1, 1], dim=1):
            steps = [
                found(piece, **with_cache(cache), use_cache=True).logits
                for found, cache in zip((theirs, ours), caches, strict=True)
            ]
            torch.testing.assert_close(*steps, atol=1e-5, rtol=1e-5)


def test_the_whole_model_with_left_padding(spec: BundleSpec, tmp_path: Path) -> None:
    theirs, ours = both(spec, tmp_path)
    ids = text(spec.layout.vocab_size, 2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))
    with torch.no_grad():
        found, expected = (m(ids, attention_mask=mask).logits for m in (ours, theirs))
    torch.testing.assert_close(found[0, 4:], expected[0, 4:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)


def test_a_fresh_bundle_changes_no_bit(
    spec: BundleSpec, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    bare = model(spec, [])
    ids = text(small_vocab.vocab_size, 2, 8)
    with torch.no_grad():
        before = bare(ids).logits
        attach(bare, make_bundle(tmp_path / "engram", spec))
        assert torch.equal(bare(ids).logits, before)
    assert spec == spec_of(small_vocab, "qwen-ple", streams=spec.module.streams)
