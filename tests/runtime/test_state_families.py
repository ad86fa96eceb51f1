"""Decoding of families that keep a state in addition to keys and values, or instead of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runtime.families import MORE_FAMILIES, STATE_FAMILIES
from runtime.greedy_texts import figures
from runtime.modes import by_hand
from runtime.test_matrix import matrix_spec
from tiny_models import logits, make_bundle, text, wake
from torch import Tensor
from transformers import PreTrainedModel

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import attach
from engram_cli.vocab.compress import CompressedVocab

# The oldest release needs use_mamba_kernels=False, which the newest warns of, and uses torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use_mamba_kernels.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]

FAMILIES = STATE_FAMILIES | MORE_FAMILIES


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    """A bundle for both layers."""
    path = tmp_path_factory.mktemp("bundle") / "engram"
    return make_bundle(path, matrix_spec(small_vocab, "engram-v1"))


@pytest.mark.parametrize("name", FAMILIES)
def test_generate_equals_full_forwards(
    name: str, everywhere: Path, small_vocab: CompressedVocab
) -> None:
    model = FAMILIES[name].build(small_vocab.vocab_size)
    # transformers' RWKV mixes up the sequences of a batch.
    ids = text(200, 1 if name == "RWKV" else 2, 7)
    bare = by_hand(model, ids)
    wake(attach(model, everywhere))
    expected = by_hand(model, ids)
    assert not torch.equal(expected, bare)
    out = model.generate(
        ids, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences[:, 7:], expected)
    full = logits(model, out.sequences[:, :-1], use_cache=False)[:, 6:]
    # The scan of a state-space model and its single steps differ by some 1e-6 of the logits.
    torch.testing.assert_close(torch.stack(out.logits, 1), full, atol=1e-3, rtol=1e-3)


@pytest.fixture
def rwkv(everywhere: Path, small_vocab: CompressedVocab) -> PreTrainedModel:
    model = STATE_FAMILIES["RWKV"].build(small_vocab.vocab_size)
    wake(attach(model, everywhere))
    return model


def stepped(
    model: PreTrainedModel, ids: Tensor, state: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The logits of ids fed one by one after a state, and the state."""
    found = []
    for piece in ids.split(1, dim=1):
        out = model(piece, state=state, use_cache=True)
        found.append(out.logits)
        state = out.state
    return torch.cat(found, 1), state


@torch.no_grad()
def test_a_state_of_plain_tensors_carries_the_memory(rwkv: PreTrainedModel) -> None:
    ids = text(200, 1, 9)
    full = logits(rwkv, ids, use_cache=False)
    first = rwkv(ids[:, :4], use_cache=True)
    found, _ = stepped(rwkv, ids[:, 4:], first.state)
    torch.testing.assert_close(found, full[:, 4:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_copied_state_of_plain_tensors_is_refused(rwkv: PreTrainedModel) -> None:
    ids = text(200, 1, 9)
    state = [part.clone() for part in rwkv(ids[:, :4], use_cache=True).state]
    with pytest.raises(RuntimeAttachError, match=r"given a state .* the memory has not seen"):
        stepped(rwkv, ids[:, 4:], state)


@pytest.mark.slow
def test_no_greedy_text_differs() -> None:
    found = list(figures())
    for figure in found:
        print(figure.family, figure.differing, figure.changed_by_memory)
    assert not any(figure.differing for figure in found)
    assert all(figure.changed_by_memory > 10 for figure in found)
