"""Patches on a bundle whose rows a GPU reads: the vectors of the edited rows, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runtime.test_patches import PLACEMENTS, base_of, edited, patch_of
from tiny_models import llama, logits, text, wake
from torch import Tensor

from engram_cli.patches.patch import Patch
from engram_cli.rows import DTYPES
from engram_cli.runtime import attach, detach
from engram_cli.runtime.tiers.staging import VARIABLE
from engram_cli.vocab.compress import CompressedVocab

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.*have no kernel:UserWarning"),
]


@pytest.fixture(autouse=True)
def _small_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_base: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text('{"block_bytes": 4096, "ahead_bytes": 0, "ring_buffer_bytes": 4096}')
    monkeypatch.setenv(VARIABLE, str(path))


def looked_up(
    bundle: Path, vocab: CompressedVocab, placement: str, patches: list[Patch]
) -> list[Tensor]:
    """The vectors that the layers of a model on the GPU are given."""
    model = llama(vocab.vocab_size).cuda()
    memory = attach(model, bundle, placement=placement, patches=patches)
    wake(memory)
    found: list[Tensor] = []
    for module in memory.layers.values():
        module.register_forward_pre_hook(
            lambda module, args: found.append(module.vectors(args[1]).detach().cpu())
        )
    logits(model, text(vocab.vocab_size, 2, 24).cuda())
    detach(model)
    return found


@pytest.mark.parametrize("dtype", tuple(DTYPES))
def test_a_gpu_looks_the_edited_rows_up(
    dtype: str, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    bundle = base_of(tmp_path / "base", small_vocab, dtype)
    patch = patch_of(bundle)
    expected = looked_up(edited(bundle, tmp_path / "edited", patch), small_vocab, "hbm", [])
    plain = looked_up(bundle, small_vocab, "hbm", [])
    assert not torch.equal(expected[0], plain[0])
    for placement in PLACEMENTS:
        if "shard" not in placement:  # on one GPU there is nothing to distribute
            found = looked_up(bundle, small_vocab, placement, [patch])
            assert all(map(torch.equal, found, expected)), placement
