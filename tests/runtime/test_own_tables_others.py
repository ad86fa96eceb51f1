"""Memories of DeepSeek-V4.1, LongCat, the paper's demo and row stores; rows stay in their files.

Reference: their arithmetic written out in plain torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formats.checkpoints import gguf, longcat
from own_tables import (
    IMAGE,
    PLACEMENTS,
    OwnTable,
    StreamDecoder,
    deepseek,
    deepseek_addition,
    deepseek_gguf,
    logits,
    longcat_flash,
    stored_tensors,
)
from safetensors.torch import load_file, save_file
from small_tokenizers import sentencepiece_tokenizer
from tiny_models import llama, make_bundle, make_spec, text, wake
from torch import Tensor, nn

from engram_cli import attach, convert, detach, hash_tokens
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.hashing.schemes import hash_layout
from engram_cli.vocab.compress import CompressedVocab


def with_memory(
    model: StreamDecoder, own: OwnTable, ids: Tensor, dead: Tensor | None = None
) -> Tensor:
    """The logits with V4.1's layers, computed without any of the runtime."""
    handles = []
    blocked = None if dead is None else dead.numpy()
    for layer, dense in own.dense.items():
        rows = hash_tokens(own.layout, ids.numpy(), layer=layer, dead=blocked)
        vectors = torch.from_numpy(own.values[layer][rows.astype(np.int64)]).flatten(-2)

        def add(_: nn.Module, args: Any, dense: Any = dense, vectors: Any = vectors) -> Any:
            return (args[0] + deepseek_addition(dense, vectors, args[0]),)

        handles.append(model.layers[layer].register_forward_pre_hook(add))
    out = logits(model, ids)
    for handle in handles:
        handle.remove()
    return out


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("flat", [False, True])
def test_deepseek_v41(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, placement: str, flat: bool
) -> None:
    own = deepseek(tmp_path / "ckpt", small_vocab, flat=flat)
    model, ids = StreamDecoder(small_vocab.vocab_size), text(small_vocab.vocab_size, 2, 16)
    ids[0, 4:7] = ids[1, 11] = IMAGE
    expected = with_memory(model, own, ids, ids == IMAGE)
    assert not torch.allclose(logits(model, ids), expected, atol=0.1)
    memory = attach(model, own.path, placement=placement, tokenizer=tokenizer_file)
    assert memory.spec.layout.fingerprint == own.layout.fingerprint
    for layer, dense in own.dense.items():
        state = memory.layers[str(layer)].state_dict()
        assert np.array_equal(state["wkv.weight"].numpy(), dense.wkv)
        assert np.array_equal(state["q_weight"].numpy(), dense.q.astype(np.float32))
        assert np.array_equal(state["k_weight"].numpy(), dense.k.astype(np.float32))
    torch.testing.assert_close(logits(model, ids), expected, atol=2e-5, rtol=2e-5)


def test_deepseek_v41_with_another_tokenizer(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    own = deepseek(tmp_path / "ckpt", small_vocab)
    model = StreamDecoder(small_vocab.vocab_size)
    with pytest.raises(InputError, match="no token map") as caught:
        attach(model, own.path)
    assert "tokenizer" in (caught.value.hint or "")
    other = tmp_path / "tokenizer.json"
    sentencepiece_tokenizer().save(str(other))
    with pytest.raises(ArtifactError, match="compressed size is"):
        attach(model, own.path, tokenizer=other)


def test_a_part_of_the_gates(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    own = deepseek(tmp_path / "ckpt", small_vocab)
    index = own.path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("3.engram.k_weight", "3.engram.other"))
    with pytest.raises(EngramError, match="k_weight"):
        attach(StreamDecoder(small_vocab.vocab_size), own.path, tokenizer=tokenizer_file)


@pytest.mark.parametrize("dialect", ["llama.cpp", "upper case"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_deepseek_v41_in_gguf(
    tmp_path: Path, small_vocab: CompressedVocab, dialect: str, placement: str
) -> None:
    own = deepseek(tmp_path / "ckpt", small_vocab, dim=256)
    path = deepseek_gguf(tmp_path / "m.gguf", own, dialect)
    model, ids = StreamDecoder(small_vocab.vocab_size), text(small_vocab.vocab_size, 2, 16)
    expected = with_memory(model, own, ids)
    memory = attach(model, path, placement=placement)
    assert memory.spec.num_layers == 5
    torch.testing.assert_close(logits(model, ids), expected, atol=5e-5, rtol=5e-5)
    assert dialect in memory.notes[0]


def test_rows_that_no_model_reads(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    layout = deepseek(tmp_path / "ckpt", small_vocab, dim=256).layout
    lookup = layout.lookup
    assert lookup is not None
    tensors = {f"blk.{entry.layer}.engram_embd.weight": ("q8_0", np.zeros((entry.rows, 272),
               np.uint8)) for entry in layout.layers}  # fmt: skip
    keys = {"general.architecture": "deepseek41",
            "deepseek41.engram.layer_ids": np.array([1, 3], dtype="<i4"),
            "deepseek41.engram.token_map": lookup.astype("<i4")}  # fmt: skip
    path = gguf(tmp_path / "m.gguf", keys, tensors)
    with pytest.raises(InputError, match="rows of q8_0") as caught:
        attach(StreamDecoder(small_vocab.vocab_size), path)
    assert "engram convert" in (caught.value.hint or "")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_longcat(tmp_path: Path, placement: str) -> None:
    """Its n-grams join the embeddings: a mean of 1 + 12 vectors before the first layer.

    transformers has the model without its n-grams.
    """
    written = longcat(tmp_path / "m", random_projections=True)
    model, ids = longcat_flash(), text(50, 2, 12)
    embed = model.model.embed_tokens
    ids[0, 4] = 2  # the EOS, which no n-gram crosses
    tables = stored_tensors(written.path)
    rows = np.stack([hash_tokens(written.layout, line.tolist(), layer=0) for line in ids])
    local = rows.astype(np.int64) - np.array(written.layout.layers[0].offsets)
    total = embed(ids).detach()
    for column in range(12):
        names = (f"model.ngram_embeddings.{n}.{column}.weight" for n in ("embedders", "post_projs"))
        embedder, projection = (_bfloat16(tables[name]) for name in names)
        total = total + embedder[local[..., column]] @ projection.T
    with torch.no_grad():
        expected = model(inputs_embeds=total / 13).logits
    assert not torch.allclose(logits(model, ids), expected, atol=0.05)
    attach(model, written.path, placement=placement)
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-5, rtol=1e-5)


def _bfloat16(stored: np.ndarray) -> Tensor:
    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float()


def test_longcat_without_projections(tmp_path: Path) -> None:
    path = longcat(tmp_path / "m").path
    tensors = load_file(path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "post_projs" not in name}
    save_file(kept, path / "model.safetensors")
    with pytest.raises(EngramError, match="projections"):
        attach(longcat_flash(), path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_papers_demo(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, dtype: str
) -> None:
    """A state dict of our own engram-v1 modules, under the demo's names, gives their logits."""
    model, ids = llama(small_vocab.vocab_size), text(small_vocab.vocab_size, 2, 12)
    layout = hash_layout("engram-v1", small_vocab, layers=(1, 2), rows_per_head=(97, 211))
    spec = make_spec(layout, dtype, dim=8)
    memory = attach(model, make_bundle(tmp_path / "engram", spec))
    wake(memory)
    expected = logits(model, ids)
    state = {
        f"layers.{layer}.engram.{name}": value
        for layer, module in memory.layers.items()
        for name, value in module.state_dict().items()
    }
    save_file(state, tmp_path / "demo.safetensors")
    detach(model)
    found = attach(model, tmp_path / "demo.safetensors", tokenizer=tokenizer_file)
    assert found.spec.module == spec.module
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_row264(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, placement: str
) -> None:
    """V4.1's rows in one piece each, with their token map, and no gate."""
    own = deepseek(tmp_path / "ckpt", small_vocab, dim=256)
    path = tmp_path / "rows"
    convert(ConvertRequest(source=own.path, to="row264", out=path, tokenizer=tokenizer_file))
    model, ids = StreamDecoder(small_vocab.vocab_size), text(small_vocab.vocab_size, 2, 12)
    memory = attach(model, path, placement=placement)
    assert "row264" in memory.notes[0]
    for layer, module in memory.layers.items():
        rows = hash_tokens(own.layout, ids.numpy(), layer=int(layer)).astype(np.int64)
        found = module.vectors(torch.from_numpy(rows)).detach().numpy()
        assert np.array_equal(found, own.values[int(layer)][rows].reshape(found.shape))
