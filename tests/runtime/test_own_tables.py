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
from formats.checkpoints import deepseek_v41, gguf, longcat
from formats.small_artifacts import pleo, store
from own_tables import (
    HIDDEN,
    IMAGE,
    QWEN_EOS,
    QWEN_VOCABULARY,
    OwnTable,
    StreamDecoder,
    as_float8,
    bare_qwen,
    deepseek,
    deepseek_addition,
    deepseek_gguf,
    longcat_flash,
    multimodal_qwen,
    qwen,
    save,
    stored_tensors,
    whole_qwen,
)
from safetensors.torch import load_file, save_file
from small_tokenizers import sentencepiece_tokenizer
from tiny_models import llama, make_bundle, make_spec, text, wake
from torch import Tensor, nn
from transformers import PreTrainedModel

from engram_cli import attach, convert, detach, hash_tokens
from engram_cli.commands.requests.tables import ConvertRequest
from engram_cli.errors import ArtifactError, EngramError, InputError, RuntimeAttachError
from engram_cli.formats.checkpoint_bundle import HostModel, open_checkpoint
from engram_cli.hashing.schemes import hash_layout
from engram_cli.runtime import load, save_engram
from engram_cli.vocab.compress import CompressedVocab

PLACEMENTS = ("hbm", "host", "disk", "host=40MB,disk")


def some_ids(vocabulary: int = QWEN_VOCABULARY) -> Tensor:
    """Two lines with an EOS inside."""
    ids = text(vocabulary, 2, 16)
    ids[0, 5] = ids[1, 9] = QWEN_EOS
    return ids


def logits(model: nn.Module, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        out = model(ids, **options)
    return out if isinstance(out, Tensor) else out.logits


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
    torch.testing.assert_close(logits(bare, ids), expected, atol=1e-6, rtol=1e-6)
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
    torch.testing.assert_close(*exact, atol=1e-6, rtol=1e-6)
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
    torch.testing.assert_close(logits(bare, ids), logits(whole, ids), atol=1e-6, rtol=1e-6)


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
    torch.testing.assert_close(logits(bare, ids), logits(whole, ids), atol=1e-6, rtol=1e-6)
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
    torch.testing.assert_close(logits(bare, ids), logits(whole, ids), atol=1e-6, rtol=1e-6)


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
    torch.testing.assert_close(logits(bare, ids), logits(whole, ids), atol=1e-6, rtol=1e-6)
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


def test_an_overlay_is_no_table(tmp_path: Path) -> None:
    path = pleo(tmp_path / "x.pleo", np.arange(3), np.ones((3, 4), np.float32))
    with pytest.raises(EngramError) as caught:
        attach(StreamDecoder(50), path)
    assert caught.value.hint
