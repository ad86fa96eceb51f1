"""A memory from another program's checkpoint, whose rows stay in its files.

References: transformers' own Qwen4-Exp, and DeepSeek-V4.1's arithmetic written out in plain torch.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formats.checkpoints import deepseek_v41, gguf
from formats.small_artifacts import pleo, store
from own_tables import (
    HIDDEN,
    PLACEMENTS,
    QWEN_EOS,
    QWEN_VOCABULARY,
    StreamDecoder,
    as_float8,
    bare_qwen,
    logits,
    multimodal_qwen,
    qwen,
    save,
    whole_qwen,
)
from safetensors.torch import load_file
from tiny_models import llama, text
from torch import Tensor
from transformers import PreTrainedModel

from engram_cli import attach, detach, hash_tokens
from engram_cli.errors import ArtifactError, EngramError, InputError, RuntimeAttachError
from engram_cli.formats.checkpoint_bundle import HostModel, open_checkpoint
from engram_cli.runtime import load, save_engram
from engram_cli.vocab.compress import CompressedVocab


def some_ids(vocabulary: int = QWEN_VOCABULARY) -> Tensor:
    """Two lines with an EOS inside."""
    ids = text(vocabulary, 2, 16)
    ids[0, 5] = ids[1, 9] = QWEN_EOS
    return ids


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """The files of a folder with size and time, of a file itself too."""
    found = [folder] if folder.is_file() else [f for f in folder.rglob("*") if f.is_file()]
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in found}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """Qwen4-Exp in float32, and its checkpoint."""
    model = qwen()
    return model, save(model, tmp_path_factory.mktemp("qwen") / "ckpt")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_qwen_equals_transformers(
    saved: tuple[PreTrainedModel, Path], placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = saved
    bare, ids, before = bare_qwen(path), some_ids(), contents(path)
    expected = logits(whole, ids)
    assert not torch.allclose(logits(bare, ids), expected, atol=0.1), "the table does not matter"
    memory = attach(bare, path, placement=placement)
    torch.testing.assert_close(logits(bare, ids), expected, atol=4e-6, rtol=4e-6)
    assert memory.spec.decoder_layers == (1, 2)
    assert contents(path) == before
    detach(bare)


def test_rows_are_those_that_transformers_looks_up(saved: tuple[PreTrainedModel, Path]) -> None:
    whole, path = saved
    ids, theirs = some_ids(), []
    layers = [whole.model.layers[place].ple.ple_embedding.ngram_embedding for place in (1, 2)]
    handles = [
        layer.register_forward_pre_hook(lambda module, args: theirs.append(args[0]))
        for layer in layers
    ]
    logits(whole, ids)
    for handle in handles:
        handle.remove()
    layout = attach(bare_qwen(path), path).spec.layout
    for layer, rows in zip((2, 3), theirs, strict=True):
        for line in range(2):
            ours = hash_tokens(layout, ids[line].tolist(), layer=layer)
            assert np.array_equal(ours.astype(np.int64), rows[line].numpy())


def test_qwen_in_bfloat16(tmp_path: Path) -> None:
    """Rounding aside it is equal: theirs is rounded after each step, ours once."""
    path, ids = save(qwen(torch.bfloat16), tmp_path / "ckpt"), some_ids()
    rounded, exact = [], []
    for dtype, into in ((torch.bfloat16, rounded), (torch.float32, exact)):
        bare = bare_qwen(path, dtype)
        assert attach(bare, path).spec.dtype == "bfloat16"
        into += [logits(bare, ids).float(), logits(whole_qwen(path, dtype), ids).float()]
    torch.testing.assert_close(*exact, atol=4e-6, rtol=4e-6)
    ours, theirs = ((found - exact[1]).abs().mean() for found in rounded)
    assert 0 < ours < 1.5 * theirs


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_qwen_in_float8_with_one_scale(tmp_path: Path, placement: str) -> None:
    whole = qwen()
    path = save(whole, tmp_path / "ckpt")
    as_float8(path, whole)
    bare, ids = bare_qwen(path), some_ids()
    memory = attach(bare, path, placement=placement)
    assert memory.spec.dtype == "fp8"
    torch.testing.assert_close(logits(bare, ids), logits(whole, ids), atol=4e-6, rtol=4e-6)


def test_decoding_and_padding(saved: tuple[PreTrainedModel, Path]) -> None:
    whole, path = saved
    bare = bare_qwen(path)
    attach(bare, path, placement="disk")
    ids = some_ids()
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(bare.generate(ids, **options), whole.generate(ids, **options))


def test_the_multimodal_model(tmp_path: Path) -> None:
    """Its checkpoint nests the config and has other names, as the release has."""
    whole = multimodal_qwen([2])
    path = save(whole, tmp_path / "ckpt")
    bare, ids = multimodal_qwen([]), some_ids(280)
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if ".ple." not in k})
    attach(bare, path)
    torch.testing.assert_close(logits(bare, ids), logits(whole, ids), atol=4e-6, rtol=4e-6)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(bare.generate(ids, **options), whole.generate(ids, **options))


def test_what_was_found_is_said(
    saved: tuple[PreTrainedModel, Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, path = saved
    with caplog.at_level("INFO", logger="engram_cli.runtime.attach"):
        memory = attach(bare_qwen(path), path, placement="disk")
    assert [record.message for record in caplog.records] == list(memory.notes)
    said = "\n".join(memory.notes)
    size = f"{memory.spec.table_bytes:,} bytes"
    for word in ("qwen-ple", "4 shards", "decoder layers 1", size, "nothing is copied", "disk:"):
        assert word in said
    assert "weights are the checkpoint's" in said


def test_rows_are_frozen_unless_asked(saved: tuple[PreTrainedModel, Path]) -> None:
    """Training changes the rows in memory, never the checkpoint's files."""
    whole, path = saved
    bare, before = bare_qwen(path), load_file(path / "model.safetensors")
    memory = attach(bare, path)
    rows = [module.multi_head_embedding.embedding.weight for module in memory.layers.values()]
    assert not any(weight.requires_grad for weight in rows)
    with pytest.raises(RuntimeAttachError, match="are frozen"):
        attach(bare_qwen(path), path, placement="disk", rows_trainable=True)
    detach(bare)
    memory = attach(bare, path, rows_trainable=True)
    rows = [module.multi_head_embedding.embedding.weight for module in memory.layers.values()]
    bare(some_ids(), labels=some_ids()).loss.backward()
    with torch.no_grad():
        for weight in rows:
            assert weight.grad.any()
            weight -= weight.grad
    after = load_file(path / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not torch.equal(logits(bare, some_ids()), logits(whole, some_ids()))


def test_saved_as_a_bundle_of_its_own(saved: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    whole, path = saved
    bare, ids = bare_qwen(path), some_ids()
    attach(bare, path, placement="disk")
    save_engram(bare, tmp_path / "engram")
    load(bare, tmp_path / "engram")
    detach(bare)
    memory = attach(bare, tmp_path / "engram")
    assert not memory.notes
    torch.testing.assert_close(logits(bare, ids), logits(whole, ids), atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "made for hidden size 32, .* has 64"),
        ({"num_hidden_layers": 3, "layer_types": ["linear_attention"] * 3}, "made for 4 decoder"),
        ({"vocab_size": 200}, "tokenizer of 300 ids, .* takes 200"),
        ({"ple_layer_ids": [2]}, "Engram layers of its own"),
    ],
)
def test_another_model_is_refused(
    saved: tuple[PreTrainedModel, Path], changes: dict[str, Any], message: str
) -> None:
    model = qwen(**{"ple_layer_ids": [], **changes})
    with pytest.raises(RuntimeAttachError, match=message) as caught:
        attach(model, saved[1])
    assert caught.value.hint
    assert not hasattr(model, "engram")


def test_a_checkpoint_that_contradicts_itself(tmp_path: Path) -> None:
    path = save(qwen(), tmp_path / "ckpt")
    bare = bare_qwen(path)
    config = path / "config.json"
    config.write_text(config.read_text().replace('"seed": 1234', '"seed": 4321'))
    with pytest.raises(ArtifactError, match=r"layer_multipliers is .* expected"):
        attach(bare, path)


def test_qwen_in_gguf(saved: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    """Norms there have the one added that ours and transformers' leave out; the conv is flat."""
    whole = qwen(ple_layer_ids=[2])
    bare = qwen(ple_layer_ids=[])
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if ".ple." not in k})
    ple = whole.model.layers[1].ple
    hashed = ple.ple_embedding
    state = {name: value.detach().numpy() for name, value in ple.state_dict().items()}
    tensors = {
        "per_layer_token_embd.weight": state["ple_embedding.ngram_embedding.weight"],
        "blk.1.ple_key.weight": state["key_proj.weight"],
        "blk.1.ple_value.weight": state["value_proj.weight"],
        "blk.1.ple_conv1d.weight": state["conv1d.weight"][:, 0],
    }
    for name in ("norm_key", "norm_query", "norm_conv"):
        tensors[f"blk.1.ple_{name}.weight"] = state[f"{name}.weight"] + 1
    start = "qwen4exp.ple."
    keys = {
        "general.architecture": "qwen4exp",
        "qwen4exp.block_count": 4,
        "qwen4exp.vocab_size": QWEN_VOCABULARY,
        f"{start}layers": np.array([1], dtype="<i4"),
        f"{start}ngram_size": 3,
        f"{start}heads_per_ngram": 8,
        f"{start}eos_token_id": QWEN_EOS,
        f"{start}layer_multipliers": hashed.layer_multipliers.numpy().astype("<u8"),
        f"{start}head_offsets": hashed.ngram_heads_offsets.numpy().astype("<u8"),
        f"{start}head_vocab_sizes": hashed.ngram_heads_vocab_sizes.numpy().astype("<u8"),
    }
    path = gguf(tmp_path / "q.gguf", keys, {n: ("float32", v) for n, v in tensors.items()})
    attach(bare, path)
    ids = some_ids()
    # The file says no eps: the model's is taken.
    torch.testing.assert_close(logits(bare, ids), logits(whole, ids), atol=4e-6, rtol=4e-6)
    detach(bare)
    memory, raw = attach(bare, path, rows_trainable=True), path.read_bytes()
    rows = memory.layers["2"].multi_head_embedding.embedding.weight
    with torch.no_grad():
        rows += 1  # one tensor in one file is mapped: its pages are copied when written to
    assert path.read_bytes() == raw
    assert not torch.equal(logits(bare, ids), logits(whole, ids))


def test_rows_alone_start_a_new_gate(tmp_path: Path) -> None:
    """An EngramDB store has no gates: what the memory adds begins at nothing."""
    written = store(tmp_path / "store")
    model = qwen(ple_layer_ids=[])
    ids = some_ids()
    before = logits(model, ids)
    memory = attach(model, written.path)
    assert torch.equal(logits(model, ids), before)
    assert "adds nothing" in "\n".join(memory.notes)
    assert memory.spec.module.streams == 2
    module = memory.layers["2"]
    found = module.multi_head_embedding(torch.tensor([[[3, 5, 8] + [0] * 13]]))
    assert np.array_equal(
        found[0, 0, :16].numpy(),
        0.25 * _e4m3(written.rows[3]),
    )


def _e4m3(items: np.ndarray) -> np.ndarray:
    return torch.from_numpy(items.copy()).view(torch.float8_e4m3fn).float().numpy()


def test_a_folder_without_any_table(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no bundle at"):
            attach(llama(200), path)


def test_verify_is_for_bundles(saved: tuple[PreTrainedModel, Path]) -> None:
    with pytest.raises(RuntimeAttachError, match="not checked here"):
        attach(bare_qwen(saved[1]), saved[1], verify=True)


def test_rows_in_several_files_need_memory_or_the_disk(
    saved: tuple[PreTrainedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU one file is mapped; several would become one tensor."""
    bare = bare_qwen(saved[1])
    monkeypatch.setenv("ENGRAM_HOST_MEMORY", "50KB")
    with pytest.raises(InputError, match=r"several files and need .* free") as caught:
        attach(bare, saved[1])
    assert "placement=disk" in (caught.value.hint or "")
    monkeypatch.delenv("ENGRAM_HOST_MEMORY")
    attach(bare, saved[1], placement="disk")


def resident_bytes() -> int:
    """The memory of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("placement", ["hbm", "host=80MB,disk"])
def test_a_checkpoint_of_the_true_size(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, placement: str
) -> None:
    """384,006,168 x 256 rows, which are holes of the files: nothing of their size is allocated."""
    path = deepseek_v41(
        tmp_path / "m", small_vocab, None, sparse=True, dim=256, rows_per_head=16_000_000
    ).path
    model, ids = StreamDecoder(small_vocab.vocab_size), text(small_vocab.vocab_size, 1, 4)
    before = logits(model, ids)
    sizes = HostModel(hidden_size=HIDDEN, num_layers=5)
    open_checkpoint(path, tokenizer_file, sizes)  # imports and compiles
    held = resident_bytes()
    bundle = open_checkpoint(path, tokenizer_file, sizes)
    assert bundle is not None
    rows = bundle.maps(1)[0]
    assert rows.shape == (384_006_168, 256)
    assert not rows[-1].any()
    assert resident_bytes() - held < 50_000_000
    memory = attach(model, path, tokenizer=tokenizer_file, placement=placement)
    assert torch.equal(logits(model, ids), before)  # zeros add nothing
    assert memory.spec.table_bytes > 2 * 98 * 10**9


def test_an_overlay_is_no_table(tmp_path: Path) -> None:
    path = pleo(tmp_path / "x.pleo", np.arange(3), np.ones((3, 4), np.float32))
    with pytest.raises(EngramError) as caught:
        attach(StreamDecoder(50), path)
    assert caught.value.hint
