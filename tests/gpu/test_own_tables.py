"""Tables of checkpoints on a CUDA device: the CPU's vectors to the bit, wherever the rows are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lookup_cases import same_bits
from own_tables import StreamDecoder, deepseek, deepseek_gguf
from tiny_models import text
from torch import Tensor

from engram_cli.runtime import attach
from engram_cli.vocab.compress import CompressedVocab

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run(model: StreamDecoder, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits, and what the layers' modules are given, on the CPU."""
    found: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(
            lambda module, args: found.append(module.vectors(args[1]).detach().cpu())
        )
        for module in model.engram.layers.values()
    ]
    with torch.no_grad():
        out = model(ids).cpu()
    for handle in handles:
        handle.remove()
    return out, found


@pytest.mark.parametrize("placement", ["hbm", "host", "disk", "host=80MB,disk"])
@pytest.mark.parametrize("dialect", ["folder", "llama.cpp", "upper case"])
def test_the_cpus_numbers(
    tmp_path: Path,
    small_vocab: CompressedVocab,
    tokenizer_file: Path,
    placement: str,
    dialect: str,
) -> None:
    own = deepseek(tmp_path / "ckpt", small_vocab, dim=256)
    path = own.path
    if dialect != "folder":  # llama.cpp's rows have their scales in between
        path = deepseek_gguf(tmp_path / "m.gguf", own, dialect)
    ids, results = text(small_vocab.vocab_size, 2, 40), []
    for device, where in (("cpu", "hbm"), ("cuda", placement)):
        model = StreamDecoder(small_vocab.vocab_size).to(device)
        attach(model, path, placement=where, tokenizer=tokenizer_file)
        results.append(run(model, ids.to(device)))
    (expected, vectors), (found, others) = results
    assert all(map(same_bits, vectors, others))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
