"""Every family with every module in every mode: what a cache, a batch or padding may not change.

docs/reference/compatibility.md is written from these tables by tests/runtime/compatibility.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runtime.families import FAMILIES, LAYERS, WIDTH
from runtime.modes import MODES
from tiny_models import (
    MODULES,
    cache_in,
    logits,
    make_bundle,
    spec_of,
    text,
    wake,
    with_cache,
)
from transformers import PreTrainedModel

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime import attach, detach
from engram_cli.vocab.compress import CompressedVocab


def matrix_spec(vocab: CompressedVocab, module: str) -> BundleSpec:
    """A bundle for both layers of the families' models."""
    return spec_of(vocab, module, decoder_layers=(0, 1), hidden_size=WIDTH, num_layers=LAYERS)


@pytest.fixture(scope="module", params=FAMILIES)
def bare(request: pytest.FixtureRequest, small_vocab: CompressedVocab) -> PreTrainedModel:
    """A tiny model of a family, built once."""
    return FAMILIES[request.param].build(small_vocab.vocab_size)


@pytest.fixture(scope="module", params=MODULES)
def attached(
    request: pytest.FixtureRequest,
    bare: PreTrainedModel,
    small_vocab: CompressedVocab,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[PreTrainedModel]:
    """The model with a memory that matters in both of its layers."""
    spec = matrix_spec(small_vocab, request.param)
    ids = text(200, 2, 9)
    before = logits(bare, ids)
    memory = attach(bare, make_bundle(tmp_path_factory.mktemp("bundle") / "engram", spec))
    assert torch.equal(logits(bare, ids), before)
    wake(memory)
    assert (logits(bare, ids) - before).abs().max() > 0.1
    yield bare
    detach(bare)
    assert torch.equal(logits(bare, ids), before)


@pytest.mark.parametrize("mode", MODES)
def test_cell(attached: PreTrainedModel, mode: str) -> None:
    MODES[mode](attached)


@pytest.mark.parametrize("name", ["Mistral", "Gemma 3", "gpt-oss"])
@pytest.mark.parametrize("mode", ["logits in pieces", "greedy", "chunked prefill", "left padding"])
def test_windows_shorter_than_the_text(
    name: str, mode: str, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    short = replace(family, options=family.options | {"sliding_window": 4})
    model = short.build(small_vocab.vocab_size)
    spec = matrix_spec(small_vocab, "engram-v1")
    wake(attach(model, make_bundle(tmp_path / "engram", spec)))
    MODES[mode](model)


def test_images_in_a_prompt_have_placeholder_ids(
    small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    model = FAMILIES["LLaVA"].build(small_vocab.vocab_size)
    spec = matrix_spec(small_vocab, "engram-v1")
    image = model.config.image_token_id
    ids = text(200, 1, 8)
    ids[0, 2:6] = image
    pixels = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids, pixel_values=pixels).logits
        wake(attach(model, make_bundle(tmp_path / "engram", spec)))
        full = model(ids, pixel_values=pixels).logits
        assert not torch.equal(full, before)
        first = model(ids[:, :7], pixel_values=pixels, use_cache=True)
        last = model(ids[:, 7:], **with_cache(cache_in(first)))
    torch.testing.assert_close(last.logits, full[:, 7:], atol=1e-5, rtol=1e-5)
