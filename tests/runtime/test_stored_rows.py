"""Quantised rows in a model: what is looked up is what the table's codec decodes, to the bit."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from quantised_bundles import DIM, QUANTISED, quantised_bundle, stored
from tiny_models import llama, logits, make_layout, make_spec, parameters, text, wake
from torch.nn.parallel import DistributedDataParallel

from engram_cli.errors import MismatchError, RuntimeAttachError
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_writer import write_bundle, write_referring
from engram_cli.formats.module_spec import first_values
from engram_cli.formats.table_reference import refer
from engram_cli.rows import DTYPES
from engram_cli.rows.source import SCALES
from engram_cli.runtime import attach, detach, load, parameter_groups, row_parameters, save_engram
from engram_cli.table.attributes import read_description
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import CompressedVocab


@pytest.mark.parametrize("dim", [DIM, 64])
@pytest.mark.parametrize("dtype", QUANTISED)
def test_vectors_are_what_the_codec_decodes(
    small_vocab: CompressedVocab, tmp_path: Path, dtype: str, dim: int
) -> None:
    path = quantised_bundle(tmp_path / "engram", small_vocab, dtype, dim=dim, nan=True)
    memory = attach(llama(small_vocab.vocab_size), path)
    codec = DTYPES.load(dtype)
    for layer, module in memory.layers.items():
        items, scales = stored(dtype, memory.spec.rows(int(layer)), dim, int(layer))
        expected = np.empty((len(items), dim), dtype=np.float32)
        codec.decode(items, scales, expected)
        rows = torch.arange(len(items)).view(1, -1, 1)
        found = module.multi_head_embedding(rows)[0].numpy()
        assert found.dtype == np.float32
        nan = np.isnan(expected)
        assert nan.any()
        assert np.array_equal(np.isnan(found), nan)
        whole = (found.view(np.uint32), expected.view(np.uint32))
        assert np.array_equal(*(np.where(nan, 0, bits) for bits in whole))


@pytest.mark.parametrize("dtype", QUANTISED)
def test_there_and_back(small_vocab: CompressedVocab, tmp_path: Path, dtype: str) -> None:
    path = quantised_bundle(tmp_path / "engram", small_vocab, dtype)
    model, ids = llama(small_vocab.vocab_size), text(200, 2, 9)
    bare = logits(model, ids)
    memory = attach(model, path)
    assert torch.equal(logits(model, ids), bare), "a fresh one adds nothing"
    wake(memory)
    awake = logits(model, ids)
    assert not torch.equal(awake, bare)
    state = parameters(model)
    saved = save_engram(model, tmp_path / "saved")
    assert read_bundle(saved, verify=True).spec == memory.spec
    assert dtype in (saved / "README.md").read_text()
    for file in path.glob("[rs]*.safetensors"):
        if file.name.endswith("of-00002.safetensors"):  # cut alike in both
            assert (saved / file.name).read_bytes() == file.read_bytes()
    detach(model)
    assert torch.equal(logits(model, ids), bare)
    assert not hasattr(model, "_ddp_params_and_buffers_to_ignore")

    attach(model, saved)
    assert torch.equal(logits(model, ids), awake)
    detach(model)
    again = attach(model, path)
    load(model, saved, verify=True)
    assert torch.equal(logits(model, ids), awake)
    detach(model)
    other = attach(model, path)
    model.load_state_dict(state)
    assert torch.equal(logits(model, ids), awake)
    assert again.spec == other.spec


def test_moving_the_model_leaves_stored_rows(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    for dtype in ("int4_b32", "int8", "fp8"):
        path = quantised_bundle(tmp_path / dtype, small_vocab, dtype)
        model = llama(small_vocab.vocab_size)
        memory = attach(model, path)
        before = parameters(memory)
        model.to(torch.bfloat16).to(torch.float16)
        kept = [name for name in before if "multi_head" in name]
        assert all(torch.equal(memory.state_dict()[name], before[name]) for name in kept)
        saved = read_bundle(save_engram(model, tmp_path / f"{dtype} saved"), verify=True)
        first = read_bundle(path)
        for part in first.spec.parts:
            mine, theirs = (np.concatenate(one.maps(1, part)) for one in (saved, first))
            assert np.array_equal(mine, theirs)


def test_training_leaves_rows_alone(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    path = quantised_bundle(tmp_path / "engram", small_vocab, "fp8_e8m0")
    model = llama(small_vocab.vocab_size)
    for asked in ({"rows_trainable": True}, {"sparse_gradients": True}):
        with pytest.raises(RuntimeAttachError, match=r"fp8_e8m0, which has no gradient"):
            attach(model, path, **asked)
    memory = attach(model, path, rows_trainable=False)
    model.requires_grad_(True)
    memory.requires_grad_(True)
    assert row_parameters(model) == []
    (group,) = parameter_groups(model, lr=0.1)
    before = parameters(memory)
    optimizer = torch.optim.SGD([group])
    losses = []
    for _ in range(3):
        loss = model(text(200, 2, 9), labels=text(200, 2, 9)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    changed = {n for n, value in memory.state_dict().items() if not torch.equal(value, before[n])}
    assert "layers.1.value_proj.weight" in changed
    assert not any("multi_head" in name for name in changed)


def test_ddp_sends_no_stored_rows(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    path = quantised_bundle(tmp_path / "engram", small_vocab, "int8_b32")
    model = llama(small_vocab.vocab_size)
    wake(attach(model, path))
    expected = logits(model, text(200, 2, 9))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        sent = {buffer.data_ptr() for buffer in wrapped.modules_buffers}
        rows = [
            buffer.data_ptr()
            for name, buffer in model.named_buffers()
            if name.endswith(("embedding.weight", "embedding.scales"))
        ]
        assert len(rows) == 4
        assert not sent & set(rows)
        assert torch.equal(logits(wrapped, text(200, 2, 9)), expected)
    finally:
        dist.destroy_process_group()


def test_another_dtype_is_not_loaded(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    model = llama(small_vocab.vocab_size)
    attach(model, quantised_bundle(tmp_path / "one", small_vocab, "int8"))
    for other in ("int4", "fp8"):
        path = quantised_bundle(tmp_path / other, small_vocab, other)
        with pytest.raises(MismatchError, match=f"has stored rows {other}"):
            load(model, path)


def test_one_graph(small_vocab: CompressedVocab, tmp_path: Path) -> None:
    for dtype in ("int4_b32", "fp8_e8m0"):
        model = llama(small_vocab.vocab_size)
        wake(attach(model, quantised_bundle(tmp_path / dtype, small_vocab, dtype)))
        ids = text(200, 2, 9)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            found = compiled(ids, use_cache=False).logits
        # A call that is not compiled runs the gate in loops of its own.
        eager = logits(model, ids, use_cache=False)
        torch.testing.assert_close(found, eager, atol=4e-6, rtol=4e-6)
        torch.compiler.reset()


@pytest.mark.parametrize("dtype", ["int4_b32", "fp8", "bfloat16"])
def test_a_table_that_is_referred_to_is_what_its_copy_is(
    small_vocab: CompressedVocab, tmp_path: Path, dtype: str
) -> None:
    init = make_init("normal", seed=0, std=0.5)
    layout = make_layout(small_vocab)
    table = TableSpec(layout=layout, dim=DIM, dtype=dtype, init=init, chunk_rows=100)
    build_store(table, tmp_path / "t.zarr")
    store, spec = open_table(tmp_path / "t.zarr"), make_spec(layout, dtype, dim=DIM)

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        assert not zero_rows
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    files = read_description(store.path).files
    reference = refer(store.path, store.digest, files, spec, tmp_path / "refers")
    write_referring(tmp_path / "refers", spec, store.chunks, dense, reference, tool_version="0")
    copy = {"scales": partial(store.chunks, part=SCALES), "tool_version": "0"}
    write_bundle(tmp_path / "copies", spec, store.chunks, dense, **copy)
    found = []
    for name in ("refers", "copies"):
        model = llama(small_vocab.vocab_size)
        wake(attach(model, tmp_path / name))
        found.append(logits(model, text(200, 2, 9)))
        save_engram(model, tmp_path / f"{name} saved")
    assert torch.equal(*found)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / f"{name} saved").iterdir()}
        for name in ("refers", "copies")
    )
    assert one == two, "what is saved holds the rows"
    code = (
        "import sys\nfrom engram_cli.formats.bundle import read_bundle\n"
        f"read_bundle({str(tmp_path / 'refers')!r}).maps(1)\n"
        "print([name for name in ('zarr', 'numba', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
