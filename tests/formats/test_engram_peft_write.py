"""convert --to engram-peft: adapters that the package loads, and adapters that it saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import peft_package, small_artifacts
from formats.converted import converted, table
from safetensors.numpy import load_file

from engram_cli import hash_tokens
from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.errors import InputError, OutputError
from engram_cli.formats.model_folder import bare_map
from engram_cli.rows.safetensors import file_metadata, raw_header
from engram_cli.rows.source import RowSource
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.lookup import VocabMap

IDS = [5, 299, 17, 17, 7, 250, 0]


def opened(path: Path, tokenizer: Path | None = None) -> RowSource:
    return find_artifact(path).open(tokenizer=tokenizer)


def same(path: Path, other: Path, tokenizer: Path | None = None) -> None:
    """The same row for every token, and the same values."""
    ours, theirs = opened(path, tokenizer), opened(other, tokenizer)
    assert ours.layout.fingerprint == theirs.layout.fingerprint
    for layer in theirs.layers:
        ids = np.arange(theirs.layout.layer(layer).rows)
        assert np.array_equal(ours.vectors(layer, ids), theirs.vectors(layer, ids))


def base_vocabulary(vocab: CompressedVocab, file: Path) -> VocabMap:
    """The map of the tokens that no one added."""
    from tokenizers import Tokenizer

    base = Tokenizer.from_file(str(file)).get_vocab_size(with_added_tokens=False)
    own = vocab.lookup[:base]
    return VocabMap(lookup=own, size=int(own.max()) + 1)


def test_an_adapter_and_a_table(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    """Adapter to adapter keeps gates and config; through a table, rows and hash stay."""
    vocab = base_vocabulary(small_vocab, tokenizer_file)
    changes = {"pad_id": 3, "seed": 0}
    made = small_artifacts.engram_peft(tmp_path / "a", vocab, pad_id=3, changes=changes)
    result = converted(made.path, "engram-peft", tmp_path / "b", tokenizer=tokenizer_file)
    assert (result.verified, result.notes) == (True, ())
    same(tmp_path / "b", made.path, tokenizer_file)
    name = "engram_adapters.safetensors"
    tensors = [raw_header(tmp_path / which / name)[0].keys() for which in "ab"]
    assert tensors[0] == tensors[1]
    assert file_metadata(tmp_path / "b" / name)["format"] == "engram-peft"

    table(made.path, tmp_path / "t.zarr", tokenizer=tokenizer_file)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 16}')
    with pytest.raises(InputError, match="needs the hidden size of its model"):
        converted(tmp_path / "t.zarr", "engram-peft", tmp_path / "c")
    result = converted(
        tmp_path / "t.zarr", "engram-peft", tmp_path / "c", patch=tmp_path / "model",
        tokenizer=tokenizer_file,
    )  # fmt: skip
    assert "engram-peft draws new ones" in result.notes[0]
    same(tmp_path / "c", made.path, tokenizer_file)
    checked = verify(VerifyRequest(path=tmp_path / "c", folder=tmp_path, tokenizer=tokenizer_file))
    assert checked.ok
    undecided = [check for check in checked.checks if check.result == "undecided"]
    assert any("draws new ones" in f"{check.found} {check.expected}" for check in undecided)


def small_model(torch: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_the_package_loads_it(tmp_path: Path, dtype: str | None) -> None:
    """`EngramModel.from_pretrained` gives our rows at our row ids."""
    torch = pytest.importorskip("torch")
    model_of, _ = peft_package.load("model", "saving")
    changes = {"enable_tokenizer_compression": False}
    made = small_artifacts.engram_peft(tmp_path / "a", bare_map(300), pad_id=7, changes=changes)
    table(made.path, tmp_path / "t.zarr")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 16}')
    for source, patch in ((made.path, None), (tmp_path / "t.zarr", tmp_path / "model")):
        out = tmp_path / f"of-{source.name}"
        converted(source, "engram-peft", out, patch=patch, dtype=dtype)
        model = model_of.EngramModel.from_pretrained(small_model(torch), str(out))
        rows = model.hash_mapping.hash(np.array([IDS]))
        ours = opened(out)
        for layer in (1, 14):
            own = hash_tokens(ours.layout, IDS, layer=layer)
            embedding = model.adapters["default"][str(layer)].multi_head_embedding
            local = torch.from_numpy(rows[layer])
            assert torch.equal((local + embedding.offsets)[0], torch.from_numpy(own.astype("i8")))
            values = ours.vectors(layer, own.reshape(-1)).reshape(len(IDS), 16, 8)
            assert torch.equal(embedding(local)[0].detach(), torch.from_numpy(values))


def test_what_the_package_saves_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    config_of, model_of = peft_package.load("config", "model")
    config = config_of.EngramConfig(
        engram_vocab_size_per_ngram=[800, 1600], ngram_sizes=[2, 3], n_head_per_ngram=4,
        embedding_dim=64, enable_tokenizer_compression=False, target_layers=[0, 2], hc_mult=2,
        compressed_vocab_size=300, pad_id=7, seed=5, hidden_size=16,
    )  # fmt: skip
    model = model_of.EngramModel(small_model(torch), config)
    model.save_pretrained(str(tmp_path / "a"))
    source = opened(tmp_path / "a")
    assert [c.name for c in source.checks if c.result == "differs"] == []
    rows = model.hash_mapping.hash(np.array([IDS]))
    for layer in (0, 2):
        own = hash_tokens(source.layout, IDS, layer=layer)
        embedding = model.adapters["default"][str(layer)].multi_head_embedding
        local = torch.from_numpy(rows[layer])
        assert np.array_equal((local + embedding.offsets)[0].numpy(), own)
        values = source.vectors(layer, own.reshape(-1)).reshape(len(IDS), 8, 8)
        assert np.array_equal(embedding(local)[0].detach().numpy(), values)
    converted(tmp_path / "a", "engram-peft", tmp_path / "b")
    again = model_of.EngramModel.from_pretrained(small_model(torch), str(tmp_path / "b"))
    before, after = model.engram_layers.state_dict(), again.engram_layers.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_through_a_bundle(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    """An adapter that was attached keeps its gates and convolutions."""
    vocab = base_vocabulary(small_vocab, tokenizer_file)
    made = small_artifacts.engram_peft(tmp_path / "a", vocab, pad_id=3, layers=(1, 3))
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(tokenizer_file, model / "tokenizer.json")
    about = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 4,
             "vocab_size": len(small_vocab.lookup)}  # fmt: skip
    (model / "config.json").write_text(json.dumps(about))
    converted(made.path, "bundle", tmp_path / "bundle", patch=model, tokenizer=tokenizer_file)
    result = converted(tmp_path / "bundle", "engram-peft", tmp_path / "b")
    assert result.notes == ()
    name = "engram_adapters.safetensors"
    before, after = (load_file(tmp_path / which / name) for which in "ab")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert any(each.any() for name, each in before.items() if "gating.w_v" in name)
    configs = [json.loads((tmp_path / which / "config.json").read_text()) for which in "ab"]
    for key in ("hc_mult", "conv_kernel_size", "embedding_dim", "pad_id", "seed", "hidden_size"):
        assert configs[0][key] == configs[1][key]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": (14,)}, "computes other moduli for layer 14"),
        ({"dtype": "int8"}, "does not hold rows of int8"),
        ({"rows": (0, 7)}, "leaves out rows"),
    ],
)
def test_what_an_adapter_cannot_hold(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    changes = {"enable_tokenizer_compression": False}
    made = small_artifacts.engram_peft(tmp_path / "a", bare_map(300), pad_id=7, changes=changes)
    with pytest.raises(InputError, match=match):
        converted(made.path, "engram-peft", tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()


def test_other_schemes_and_maps_are_refused(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    demo = small_artifacts.demo(tmp_path / "d", small_vocab)
    out = tmp_path / "b"
    with pytest.raises(InputError, match="is hashed by engram-v1, and an adapter of engram-peft"):
        converted(demo.path, "engram-peft", out, tokenizer=tokenizer_file)
    qwen = {"engine": "qwen_ple", "table_spec": "PLE_QWEN_V1"}
    other = small_artifacts.engram_peft(tmp_path / "q", bare_map(300), pad_id=7, changes=qwen)
    with pytest.raises(InputError, match="is hashed by unknown"):
        converted(other.path, "engram-peft", out)


def test_only_own_adapters_are_replaced(tmp_path: Path) -> None:
    changes = {"enable_tokenizer_compression": False}
    made = small_artifacts.engram_peft(tmp_path / "a", bare_map(300), pad_id=7, changes=changes)
    theirs = small_artifacts.engram_peft(tmp_path / "b", bare_map(300), pad_id=7, changes=changes)
    with pytest.raises(OutputError, match="is no adapter of engram-peft"):
        converted(made.path, "engram-peft", theirs.path, force=True)
    converted(made.path, "engram-peft", tmp_path / "c")
    converted(made.path, "engram-peft", tmp_path / "c", force=True)
    assert json.loads((tmp_path / "c" / "config.json").read_text())["written_by"]
