"""Documents packed into one line: each is computed as if it were alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MODULES, llama, logits, make_bundle, spec_of, text, wake
from torch import Tensor
from transformers import PreTrainedModel

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import attach
from engram_cli.vocab.compress import CompressedVocab

LENGTHS = (5, 1, 7)
STARTS = torch.tensor([0, 5, 6, 13])
PLACES = torch.cat([torch.arange(length) for length in LENGTHS])[None]


@pytest.fixture(params=MODULES)
def packed(
    request: pytest.FixtureRequest, small_vocab: CompressedVocab, tmp_path: Path
) -> PreTrainedModel:
    """A tiny Llama whose bundle is packed."""
    model = llama(small_vocab.vocab_size)
    path = make_bundle(tmp_path / "engram", spec_of(small_vocab, request.param, packed=True))
    wake(attach(model, path))
    return model


def apart(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return torch.cat([logits(model, one) for one in ids.split(LENGTHS, dim=1)], dim=1)


@pytest.mark.parametrize("options", [{}, {"cu_seq_lens_q": STARTS.to(torch.int32)}])
def test_documents_do_not_see_each_other(packed: PreTrainedModel, options: dict[str, Any]) -> None:
    ids = text(200, 1, 13)
    found = logits(packed, ids, position_ids=PLACES, use_cache=False, **options)
    torch.testing.assert_close(found, apart(packed, ids), atol=1e-5, rtol=1e-5)
    one_line = logits(packed, ids, use_cache=False)
    assert (one_line - found).abs().max() > 0.1


def test_two_lines_packed_differently(packed: PreTrainedModel) -> None:
    ids = text(200, 2, 13)
    places = torch.cat((PLACES, torch.arange(13)[None]))
    found = logits(packed, ids, position_ids=places, use_cache=False)
    torch.testing.assert_close(found[:1], apart(packed, ids[:1]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:], logits(packed, ids[1:]), atol=1e-5, rtol=1e-5)


def test_it_generates_as_ever(packed: PreTrainedModel) -> None:
    ids = text(200, 2, 8)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    found = packed.generate(ids, **options)
    assert torch.equal(found, packed.generate(ids, use_cache=False, **options))
    alone = packed.generate(ids[:1, 3:], max_new_tokens=6, do_sample=False)
    assert torch.equal(found[:1, 3:], alone)


def test_a_bundle_that_is_not_packed_sees_one_line(
    small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    model = llama(small_vocab.vocab_size)
    memory = attach(model, make_bundle(tmp_path / "engram", spec_of(small_vocab, "engram-v1")))
    wake(memory)
    rows: list[Tensor] = []
    memory.layers["1"].register_forward_pre_hook(lambda module, args: rows.append(args[1]))
    ids = text(200, 1, 13)
    logits(model, ids, position_ids=PLACES, use_cache=False)
    logits(model, ids, use_cache=False)
    assert torch.equal(*rows)


@pytest.mark.parametrize(
    "options",
    [
        {"position_ids": torch.arange(12)[None]},
        {"cu_seq_lens_q": torch.tensor([0])},
        {"cu_seq_lens_q": torch.zeros(2, 2)},
    ],
)
def test_boundaries_that_cannot_be_read(packed: PreTrainedModel, options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeAttachError, match=r"position_ids of shape|cumulative lengths"):
        packed(text(200, 1, 13), **options)
