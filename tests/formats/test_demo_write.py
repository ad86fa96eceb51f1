"""convert --to demo: state dicts that modules of the demo's shapes load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import checkpoints, small_artifacts
from formats.converted import converted, table
from safetensors.numpy import load_file

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.errors import InputError, OutputError
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.demo import OFFSETS, WEIGHT
from engram_cli.formats.model_folder import CheckpointRows
from engram_cli.vocab.compress import CompressedVocab

HIDDEN, COPIES = small_artifacts.HIDDEN, small_artifacts.COPIES


def demo_model(torch: Any, moduli: dict[int, tuple[int, ...]], dim: int = 8) -> Any:
    """Modules with the demo's names and shapes: a list of layers, some of which have a memory."""
    nn = torch.nn

    class Lookup(nn.Module):
        def __init__(self, sizes: tuple[int, ...]) -> None:
            super().__init__()
            begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
            self.register_buffer("offsets", torch.tensor(begins, dtype=torch.long))
            self.embedding = nn.Embedding(sum(sizes), dim)

        def forward(self, rows: Any) -> Any:
            return self.embedding(rows + self.offsets)

    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            wide = COPIES * HIDDEN
            self.conv = nn.Conv1d(wide, wide, 4, groups=wide, bias=False, dilation=3)
            self.norms = nn.ModuleList([nn.RMSNorm(HIDDEN) for _ in range(COPIES)])

    class Engram(nn.Module):
        def __init__(self, sizes: tuple[int, ...]) -> None:
            super().__init__()
            self.multi_head_embedding = Lookup(sizes)
            self.short_conv = Conv()
            width = len(sizes) * dim
            self.value_proj = nn.Linear(width, HIDDEN)
            self.key_projs = nn.ModuleList([nn.Linear(width, HIDDEN) for _ in range(COPIES)])
            self.norm1 = nn.ModuleList([nn.RMSNorm(HIDDEN) for _ in range(COPIES)])
            self.norm2 = nn.ModuleList([nn.RMSNorm(HIDDEN) for _ in range(COPIES)])

    class Layer(nn.Module):
        def __init__(self, sizes: tuple[int, ...] | None) -> None:
            super().__init__()
            if sizes is not None:
                self.engram = Engram(sizes)

    model = nn.Module()
    model.layers = nn.ModuleList([Layer(moduli.get(i)) for i in range(max(moduli) + 1)])
    return model


def test_a_state_dict_and_back(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    """State dict -> state dict keeps the module; through a table, rows and hash stay."""
    made = small_artifacts.demo(tmp_path / "d", small_vocab)
    out = tmp_path / "new.safetensors"
    result = converted(made.path, "demo", out, tokenizer=tokenizer_file)
    assert result.verified
    assert len(result.notes) == 1
    old, new = load_file(made.path / "model.safetensors"), load_file(out)
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[name], new[name]) for name in old)
    table(made.path, tmp_path / "t.zarr", tokenizer=tokenizer_file)
    bare = tmp_path / "bare.safetensors"
    result = converted(tmp_path / "t.zarr", "demo", bare)
    assert "strict=False" in result.notes[1]
    source = find_artifact(bare).open(tokenizer=tokenizer_file)
    assert source.layout.fingerprint == made.layout.fingerprint
    for layer, rows in made.rows.items():
        assert np.array_equal(source.vectors(layer, np.arange(len(rows))), rows)
    checked = verify(VerifyRequest(path=out, folder=tmp_path, tokenizer=tokenizer_file))
    assert checked.ok


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demos_modules_load_it(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    tensors = pytest.importorskip("safetensors.torch")
    made = small_artifacts.demo(tmp_path / "d", small_vocab, dtype=dtype)
    out = tmp_path / "new.safetensors"
    converted(made.path, "demo", out, tokenizer=tokenizer_file)
    moduli = {entry.layer: entry.moduli for entry in made.layout.layers}
    model = demo_model(torch, moduli).to(getattr(torch, dtype))
    model.load_state_dict(tensors.load_file(out))
    source = find_artifact(out).open()
    local = torch.tensor([[modulus - 1 for modulus in moduli[15]], [0] * 16])
    got = model.layers[15].engram.multi_head_embedding(local).float().detach().numpy()
    rows = (local + torch.tensor(made.layout.layer(15).offsets)).numpy()
    assert np.array_equal(got.reshape(32, 8), source.vectors(15, rows.reshape(-1)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_loads_a_pt(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path, dtype: str
) -> None:
    """With weights_only=True, into the demo's modules; and engram reads it back."""
    torch = pytest.importorskip("torch")
    made = small_artifacts.demo(tmp_path / "d", small_vocab)
    out = tmp_path / "new.pt"
    options = {} if dtype == "float32" else {"dtype": dtype}
    result = converted(made.path, "demo", out, tokenizer=tokenizer_file, **options)
    assert (result.verified, result.size) == (True, out.stat().st_size)
    moduli = {entry.layer: entry.moduli for entry in made.layout.layers}
    model = demo_model(torch, moduli)
    loaded = torch.load(out, weights_only=True, mmap=True)
    assert loaded["layers.1.engram.multi_head_embedding.embedding.weight"].dtype == getattr(
        torch, dtype
    )
    model.load_state_dict(loaded)
    embedding = model.layers[1].engram.multi_head_embedding.embedding.weight
    assert np.array_equal(embedding.detach().numpy(), made.rows[1])
    source = find_artifact(out).open(tokenizer=tokenizer_file)
    assert source.layout.fingerprint == made.layout.fingerprint
    assert np.array_equal(source.vectors(15, np.arange(99)), made.rows[15][:99])
    torch.save(model.state_dict(), tmp_path / "theirs.pt")
    converted(tmp_path / "theirs.pt", "demo", tmp_path / "again.pt", tokenizer=tokenizer_file)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(torch.equal(again[name], each) for name, each in model.state_dict().items())
    with pytest.raises(OutputError, match="is no state dict"):
        converted(made.path, "demo", tmp_path / "theirs.pt", force=True)
    converted(made.path, "demo", out, force=True)


def test_a_bundle_brings_its_gates(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    """What attach wrote has the demo's module: its weights have the demo's names."""
    from formats.bundles import make_spec, write

    spec = make_spec(small_vocab)
    write(spec, tmp_path / "bundle")
    dense = read_bundle(tmp_path / "bundle").dense
    for out in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        result = converted(tmp_path / "bundle", "demo", out)
        assert len(result.notes) == 1
        source = find_artifact(out).open()
        assert isinstance(source, CheckpointRows)
        for layer in spec.layers:
            found = {what: source.folder.tensors[name].values()
                     for what, name in source.modules[layer].items()}  # fmt: skip
            assert found.keys() == {WEIGHT, OFFSETS, *dense[layer]}
            assert all(np.array_equal(found[name], each) for name, each in dense[layer].items())
        assert [c for c in source.checks if c.name.endswith("module") and c.result != "ok"] == []


def test_what_a_state_dict_cannot_hold(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    out = tmp_path / "x.safetensors"
    deepseek = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4")
    for dtype in (None, "float32"):  # the hash comes first: another dtype would not help
        with pytest.raises(InputError, match=r"hashed by deepseek-v4\.1, and a state dict of the"):
            converted(deepseek.path, "demo", out, dtype=dtype)
    made = small_artifacts.demo(tmp_path / "d", small_vocab)
    with pytest.raises(InputError, match="ends in neither"):
        converted(made.path, "demo", tmp_path / "x.bin")
    assert not out.exists()
    result = converted(made.path, "demo", out, layers=(15,))
    assert set(find_artifact(out).open().layers) == {15}
    with pytest.raises(OutputError, match="already exists"):
        converted(made.path, "demo", out)
    assert converted(made.path, "demo", out, layers=(15,), force=True).size == result.size
    theirs = made.path / "model.safetensors"
    with pytest.raises(OutputError, match=r"this command reads|is no state dict"):
        converted(made.path, "demo", theirs, force=True)
